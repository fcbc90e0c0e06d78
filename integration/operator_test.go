package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/walferry/walferry/restore/instance"
)

// operator is a person who takes base backups of a scene's cluster and restores
// them. Where the cluster and the archive are stands in the environment alone,
// so that the commands are as short as they are for a person.
type operator struct {
	*scene
	vars []string
}

// quick: the race detector waits a second at the end of each process, for
// goroutines that it has left; short commands leave none.
const quick = "GORACE=atexit_sleep_ms=0"

// operator works with the archive that is a directory.
func (s *scene) operator() *operator {
	return &operator{s, append(s.env(), quick, "WALFERRY_HOME="+s.home, "WALFERRY_STORE="+s.store(),
		"PGHOST="+s.pg.SocketDir(), fmt.Sprint("PGPORT=", s.pg.Port()), "PGUSER=postgres")}
}

// operator works with the archive in the bucket.
func (s *bucketScene) operator() *operator {
	return &operator{s.scene, append([]string{quick}, s.vars...)}
}

// with is the same person with more variables.
func (o *operator) with(more ...string) *operator {
	return &operator{o.scene, append(slices.Clone(o.vars), more...)}
}

// at is the same person who works on another server of the scene.
func (o *operator) at(pg *instance.Server) *operator {
	return o.with("PGHOST="+pg.SocketDir(), fmt.Sprint("PGPORT=", pg.Port()), "PGUSER=postgres")
}

// walferry starts the binary as the person does.
func (o *operator) walferry(args ...string) *process {
	o.t.Helper()
	return start(o.t, o.vars, o.binary, args...)
}

// create starts "backup create".
func (o *operator) create(more ...string) *process {
	o.t.Helper()
	return o.walferry(append([]string{"backup", "create"}, more...)...)
}

// backup takes a base backup and returns its name.
func (o *operator) backup(more ...string) string {
	o.t.Helper()
	p := o.create(more...)
	p.exits(0)
	name := strings.TrimSpace(p.stdout.String())
	if !regexp.MustCompile(`^base_[0-9A-F]{24}_[0-9A-F]{8}$`).MatchString(name) {
		o.t.Fatalf("backup create printed %q, want the name of the backup and nothing else", p.stdout.String())
	}
	return name
}

// slowly are flags with which a backup takes its time, on every server: the rate
// is that of what goes over the wire.
func slowly(mb int) []string {
	return []string{"--compress", "client-lz4", "--max-rate", fmt.Sprintf("%dMB", mb)}
}

// listing is what "backup list --json" prints.
type listing struct {
	Archive string         `json:"archive"`
	Latest  *string        `json:"latest"`
	Backups []listedBackup `json:"backups"`
}

type listedBackup struct {
	Name            string            `json:"name"`
	By              string            `json:"by"`
	Error           *string           `json:"error"`
	Start           *listedPosition   `json:"start"`
	Stop            *listedPosition   `json:"stop"`
	Started         *string           `json:"started"`
	Finished        *string           `json:"finished"`
	DurationSeconds *float64          `json:"duration_seconds"`
	Bytes           *int64            `json:"bytes"`
	StoredBytes     *int64            `json:"stored_bytes"`
	Server          *string           `json:"server"`
	System          *string           `json:"system_identifier"`
	FromStandby     *bool             `json:"from_standby"`
	Label           *string           `json:"label"`
	Compression     *string           `json:"compression"`
	Permanent       bool              `json:"permanent"`
	DependsOn       *string           `json:"depends_on"`
	Tablespaces     map[string]string `json:"tablespaces"`
	Suspect         []string          `json:"suspect"`
	WALIncluded     bool              `json:"wal_included"`
	WALComplete     *bool             `json:"wal_complete"`
	WALSealed       *bool             `json:"wal_sealed"`
	WALMissing      *string           `json:"wal_missing"`
	FactsError      *string           `json:"facts_error"`
	RestorableTo    *listedPosition   `json:"restorable_to"`
	Gap             *listedGap        `json:"gap"`
}

type listedGap struct {
	Timeline uint32   `json:"timeline"`
	Start    lsnField `json:"start"`
	End      lsnField `json:"end"`
}

type listedPosition struct {
	LSN      lsnField `json:"lsn"`
	Timeline uint32   `json:"timeline"`
}

// list asks which backups there are.
func (o *operator) list() (l listing) {
	o.t.Helper()
	o.ask(&l, "backup", "list", "--json")
	return l
}

// names are the backups that list shows.
func (l listing) names() []string {
	names := []string{}
	for _, b := range l.Backups {
		names = append(names, b.Name)
	}
	return names
}

// show asks for one of them, by its name or as LATEST.
func (o *operator) show(name string) (b listedBackup) {
	o.t.Helper()
	o.ask(&b, "backup", "show", name, "--json")
	return b
}

// ask runs a command that prints a document, which has all the fields that v
// has: they are a contract.
func (o *operator) ask(v any, args ...string) {
	o.t.Helper()
	p := o.walferry(args...)
	p.exits(0)
	d := json.NewDecoder(strings.NewReader(p.stdout.String()))
	d.DisallowUnknownFields() // a new one is to be known here
	if err := d.Decode(v); err != nil {
		o.t.Fatalf("%v in\n%s", err, p.stdout.String())
	}
}

// restore starts "restore" into a directory.
func (o *operator) restore(dir string, more ...string) *process {
	o.t.Helper()
	return o.walferry(append([]string{"restore", "-D", dir}, more...)...)
}

// restored makes a server, not started, of what "restore" makes. It gets
// nothing of the operator's environment.
func (o *operator) restored(name string, more ...string) *instance.Server {
	o.t.Helper()
	return o.restoredBy(name, func(dir string) error {
		p := o.restore(dir, more...)
		if code := p.wait(); code != 0 {
			return fmt.Errorf("restore ended with %d", code)
		}
		return nil
	})
}

func (o *operator) restoredBy(name string, fill func(dir string) error) *instance.Server {
	o.t.Helper()
	pg, err := instance.Adopt(o.ctx(), instance.Options{
		Installation: o.pg.Installation(), Dir: filepath.Join(o.dir, name), Account: &theLab.account,
		Settings: map[string]string{"fsync": "off", "autovacuum": "off", "min_wal_size": fmt.Sprintf("%dMB", 2*max(int(o.size)>>20, 40))},
		Env:      []string{quick},
	}, fill)
	if err != nil {
		o.t.Fatal(err)
	}
	o.removeAtEnd(pg)
	return pg
}

// recovers starts a restored server and waits until it is a primary.
func (o *operator) recovers(pg *instance.Server) {
	o.t.Helper()
	if err := pg.Start(o.ctx()); err != nil {
		o.t.Fatal(err)
	}
	if err := pg.AwaitPrimary(o.ctx()); err != nil {
		o.t.Fatal(err)
	}
}

// asked is the answer of a server to a query.
func (o *operator) asked(pg *instance.Server, sql string) string {
	o.t.Helper()
	v, err := query(o.ctx(), pg.DSN("postgres"), sql)
	if err != nil {
		o.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// having is an installation that has a program of PostgreSQL's which serves all
// versions: the given one, else any. Where there is none it is said.
func having(t *testing.T, i instance.Installation, program string) (instance.Installation, bool) {
	t.Helper()
	for _, i := range append([]instance.Installation{i, theLab.main}, theLab.found...) {
		if i.Has(program) {
			return i, true
		}
	}
	t.Logf("NOT TESTED: there is no %s here", program)
	return i, false
}

// verify lets pg_verifybackup say whether a restored directory, in which no
// server was started yet, is what the original's server sent. withWAL: it holds
// the WAL that it needs, and that is looked at as well.
func (o *operator) verify(dir string, withWAL bool, more ...string) {
	o.t.Helper()
	i, ok := having(o.t, o.pg.Installation(), "pg_verifybackup")
	if !ok {
		return
	}
	if !withWAL || i.Major != o.pg.Installation().Major { // WAL is read by its own version's pg_waldump alone
		more = append(more, "--no-parse-wal")
	}
	if i.Major != o.pg.Installation().Major {
		o.t.Logf("pg_verifybackup is that of %s", i)
	}
	p := start(o.t, nil, i.Program("pg_verifybackup"), append(more, dir)...)
	if code := p.wait(); code != 0 {
		o.t.Errorf("pg_verifybackup ended with %d:\n%s", code, p.log())
	}
}

// amcheck lets pg_amcheck look at every relation and index of a server.
func (o *operator) amcheck(pg *instance.Server) {
	o.t.Helper()
	i, ok := having(o.t, o.pg.Installation(), "pg_amcheck")
	if !ok {
		return
	}
	p := start(o.t, nil, i.Program("pg_amcheck"), "--host="+pg.SocketDir(), fmt.Sprint("--port=", pg.Port()), "--username=postgres",
		"--all", "--install-missing", "--heapallindexed", "--rootdescend")
	if code := p.wait(); code != 0 {
		o.t.Errorf("pg_amcheck ended with %d:\n%s", code, p.log())
	}
}

// failed wants a command to have failed as it should: the code, one line that
// says the pattern, and a hint at most.
func (p *process) failed(code int, says string) {
	p.t.Helper()
	p.exits(code)
	errors := regexp.MustCompile(`(?m)^walferry: error: .*$`).FindAllString(p.log(), -1)
	if len(errors) != 1 || !regexp.MustCompile(says).MatchString(p.log()) {
		p.t.Errorf("want one error, and something that says %s:\n%s", says, p.log())
	}
	if strings.Contains(p.log(), "goroutine ") {
		p.t.Errorf("it has crashed:\n%s", p.log())
	}
}

// absent wants nothing to be at a path.
func absent(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("%s is there (%v)", path, err)
	}
}

// runAsRoot prepares a program as the user of the tests, with nothing but env.
func runAsRoot(t *testing.T, env []string, program string, args ...string) *process {
	t.Helper()
	cmd := theLab.account.Command(context.WithoutCancel(t.Context()), program, args...)
	cmd.SysProcAttr.Credential = nil
	cmd.Env = append(cmd.Env, env...)
	return run(t, cmd)
}
