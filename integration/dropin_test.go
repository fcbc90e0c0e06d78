package integration

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pierrec/lz4/v4"

	"github.com/walferry/walferry/restore/instance"
	"github.com/walferry/walferry/segment"
)

// Side by side: PostgreSQL's pg_receivewal and ours get the same command line,
// each with a directory and a slot of its own, and must leave the same exit
// code, the same messages and the same files behind. The command lines are in
// dropin_table_test.go.
//
// What may differ, because the original's way is a weakness and no interface:
//
//   - what a connection that fails is called: the reason is libpq's there, and
//     the driver's here (dropInCase.like)
//   - the name of what is wrong with a damaged lz4 file: liblz4's there
//   - where streaming stops: the rest of the message that went past --endpos is
//     written, and how much that is hangs on how far the server was (normalise)
//   - how far a slot is: ours has been told at the end, too
//   - a partial of another compression, whose bytes another file has: ours
//     removes it (stale)
//   - what is said of a timeline that the server has not, or of WAL that it has
//     not: ours ends for good
//   - a first connection that fails: ours waits, so that it is no case here

// receivewal is a pg_receivewal: PostgreSQL's or ours.
type receivewal struct {
	name  string // in messages of the tests
	path  string
	major int // 0: ours
}

// ending is how a program ended.
type ending struct {
	code           int // -1: by a signal
	stdout, stderr string
}

// command prepares a run. Both programs are told the same name; env comes on
// top of the account's.
func (r receivewal) command(ctx context.Context, env, args []string) *exec.Cmd {
	cmd := theLab.account.Command(ctx, r.path, args...)
	cmd.Args[0] = "pg_receivewal"
	// The race detector sleeps for a second at the end of each program.
	cmd.Env = append(append(cmd.Env, "GORACE=atexit_sleep_ms=0"), env...)
	return cmd
}

// run runs it to its end.
func (r receivewal) run(t *testing.T, env []string, args ...string) ending {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return endingOf(ctx, t, r.command(ctx, env, args), nil)
}

// endingOf runs a command to its end; meanwhile is done beside it.
func endingOf(ctx context.Context, t *testing.T, cmd *exec.Cmd, meanwhile func(*os.Process)) ending {
	t.Helper()
	var stdout, stderr output
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if meanwhile != nil {
		meanwhile(cmd.Process)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Fatalf("%s %q does not end; so far it printed\n%s", cmd.Path, cmd.Args[1:], stderr.String())
	}
	return ending{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// ours returns our own, and skips the test where there is none.
func ours(t *testing.T) receivewal {
	t.Helper()
	if theLab.missing != "" {
		t.Skip("NOT TESTED: " + theLab.missing)
	}
	binary, err := theLab.binary()
	if err != nil {
		t.Fatal(err)
	}
	return receivewal{name: "ours", path: binary}
}

// originals returns PostgreSQL's, one of every major version that is here,
// newest first, and skips the test where there is none.
func originals(t *testing.T) []receivewal {
	t.Helper()
	var all []receivewal
	for _, i := range theLab.found {
		if i.Has("pg_receivewal") && !slices.ContainsFunc(all, func(r receivewal) bool { return r.major == i.Major }) {
			all = append(all, receivewal{i.String(), i.Program("pg_receivewal"), i.Major})
		}
	}
	if len(all) == 0 {
		t.Skip("NOT TESTED: no PostgreSQL here has a pg_receivewal")
	}
	return all
}

// originalFor returns the one that goes with a server: of its own version, or
// else the oldest newer one. (An older one refuses the server.)
func originalFor(t *testing.T, server instance.Installation) receivewal {
	t.Helper()
	all := originals(t)
	slices.Reverse(all)
	for _, r := range all {
		if r.major >= server.Major {
			return r
		}
	}
	t.Skipf("NOT TESTED: no pg_receivewal here is made for %s", server)
	return receivewal{}
}

// nowhere is an environment in which no server is found.
func nowhere() []string { return []string{"PGHOST=/nonexistent"} }

// words splits a line at spaces, but for those between single quotes.
func words(line string) []string {
	var all []string
	var word strings.Builder
	begun, quoted := false, false
	for _, c := range line + " " {
		switch {
		case c == '\'':
			begun, quoted = true, !quoted
		case c == ' ' && !quoted:
			if begun {
				all = append(all, word.String())
			}
			word.Reset()
			begun = false
		default:
			word.WriteRune(c)
			begun = true
		}
	}
	return all
}

// Every wrong command line is refused in the original's words, by every
// version of it that is here.
func TestDropInCommandLine(t *testing.T) {
	t.Parallel()
	our := ours(t)
	stride, compared := rounds(3, 1), 0
	for i := seeded(t).IntN(stride); i < len(dropInLines); i += stride {
		c := dropInLines[i]
		compared++
		args := words(c.line)
		got := our.run(t, nowhere(), args...)
		for _, original := range originals(t) {
			if original.major < c.since {
				continue
			}
			want := original.run(t, nowhere(), args...)
			if got != want {
				t.Errorf("%s\nours ends with %d and prints\n%s%s%s: %d\n%s%s", c.line, got.code, got.stdout, got.stderr, original.name, want.code, want.stdout, want.stderr)
			}
			if want.code != 1 || want.stderr == "" {
				t.Errorf("%s: %s ends with %d: the line is not a wrong one", c.line, original.name, want.code)
			}
		}
	}
	t.Logf("%d lines of %d", compared, len(dropInLines))
}

// So is every line that is put together at random.
func TestDropInRandomLines(t *testing.T) {
	t.Parallel()
	our := ours(t)
	original := originals(t)[0]
	random := seeded(t)
	compared := 0
	for range rounds(60, 3000) {
		var args []string
		for range 1 + random.IntN(5) {
			args = append(args, words(dropInPieces[random.IntN(len(dropInPieces))])...)
		}
		want := original.run(t, nowhere(), args...)
		if want.code == 0 || strings.Contains(want.stderr, "connection to server") {
			continue // a good line
		}
		compared++
		if got := our.run(t, nowhere(), args...); got != want {
			t.Errorf("%q\nours ends with %d and prints\n%s%s%s: %d\n%s%s", args, got.code, got.stdout, got.stderr, original.name, want.code, want.stdout, want.stderr)
		}
	}
	t.Logf("%d lines compared with %s", compared, original.name)
	if compared == 0 {
		t.Error("nothing was compared")
	}
}

// Help and version are printed for the first argument only, whatever follows.
func TestDropInHelp(t *testing.T) {
	t.Parallel()
	our := ours(t)
	for _, original := range originals(t) {
		for _, arg := range []string{"--help", "-?", "--version", "-V"} {
			for _, more := range []string{"", "--bad"} {
				args := words(arg + " " + more)
				got, want := our.run(t, nil, args...), original.run(t, nil, args...)
				if got.code != 0 || want.code != 0 || got.stderr != "" || want.stderr != "" || got.stdout == "" || !strings.HasPrefix(got.stdout, "pg_receivewal ") {
					t.Errorf("%q: ours %+v, %s %+v", args, got, original.name, want)
				}
			}
		}
		// The options stand in the same order under both.
		names := regexp.MustCompile(`(?m)^  (?:-.,|   ) --[a-z-]+(?:=\S+)?`)
		got := names.FindAllString(our.run(t, nil, "--help").stdout, -1)
		want := names.FindAllString(original.run(t, nil, "--help").stdout, -1)
		if len(got) <= len(want) || !slices.Equal(got[:len(want)], want) {
			t.Errorf("--help: ours has %q, %s %q", got, original.name, want)
		}
	}
}

// It is the name of the file that makes the program a pg_receivewal: of a
// link, of a copy; or the first word.
func TestDropInNames(t *testing.T) {
	t.Parallel()
	our := ours(t)
	dir, err := os.MkdirTemp(theLab.dir, "")
	if err != nil {
		t.Fatal(err)
	}
	link, hard := filepath.Join(dir, "link", "pg_receivewal"), filepath.Join(dir, "hard", "pg_receivewal")
	err = errors.Join(os.Chmod(dir, 0o755), os.Mkdir(filepath.Dir(link), 0o755), os.Mkdir(filepath.Dir(hard), 0o755),
		os.Symlink(our.path, link), os.Link(our.path, hard))
	if err != nil {
		t.Fatal(err)
	}
	const hint = "pg_receivewal: hint: Try \"pg_receivewal --help\" for more information.\n"
	for _, c := range []struct{ line, typed string }{
		{link, link}, {hard, hard}, {our.path + " pg_receivewal", "pg_receivewal"},
	} {
		argv := strings.Fields(c.line)
		for arg, want := range map[string]string{
			"--bad": c.typed + ": unrecognized option '--bad'\n" + hint,
			"word":  "pg_receivewal: error: too many command-line arguments (first is \"word\")\n" + hint,
		} {
			args := append(slices.Clone(argv[1:]), arg)
			got := endingOf(t.Context(), t, theLab.account.Command(t.Context(), argv[0], args...), nil)
			if got != (ending{1, "", want}) {
				t.Errorf("%s %s: got %+v; want 1 and %q", c.line, arg, got, want)
			}
		}
	}
}

// dropInCase is a command line that goes to a server.
type dropInCase struct {
	name string
	args string // see stage.fill for what stands between braces
	code int    // that both must end with, so that a case is what it says
	// put puts files into the directory first.
	put func(*stage)
	// like is what both must print, where it need not be the same.
	like string
	// interrupt: SIGINT comes when the segment that is still open has begun.
	interrupt bool
	since     int // the server's major version; 0: any
}

// stage is what one side of a case has.
type stage struct {
	*dropInWorld
	t         *testing.T
	dir       string
	slot, new string // a slot that exists, and one that does not
}

// dropInWorld is a cluster with WAL to receive: whole segments, of which the
// first holds the restart_lsn of the slot "template", and one that has begun.
type dropInWorld struct {
	*scene
	original, our receivewal
	segments      []segment.Name
	inside        []segment.LSN // one inside of each
}

func newDropInWorld(t *testing.T, i instance.Installation) *dropInWorld {
	t.Helper()
	w := &dropInWorld{our: ours(t), original: originalFor(t, i)}
	w.scene = newScene(t, options{pg: i, settings: map[string]string{"max_replication_slots": "500", "max_wal_senders": "40"}})
	w.table()
	w.switchWAL()
	w.sql("CHECKPOINT; SELECT pg_create_physical_replication_slot('template', true)")
	for range 6 {
		w.fill(200)
		lsn, err := segment.ParseLSN(w.sql("SELECT pg_current_wal_lsn()"))
		if err != nil {
			t.Fatal(err)
		}
		w.inside = append(w.inside, lsn)
		w.segments = append(w.segments, w.switchWAL())
	}
	w.fill(200)
	for n, seg := range w.segments {
		if w.size.Name(1, w.inside[n]) != seg {
			t.Fatalf("%s is not in segment %s", w.inside[n], seg)
		}
	}
	if v := w.sql("SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots WHERE slot_name = 'template'"); v != w.segments[0].String() {
		t.Fatalf("the slot begins in %s, not in the first segment %s", v, w.segments[0])
	}
	return w
}

// stage makes the directory and the slot of one side.
func (w *dropInWorld) stage(t *testing.T, n int, side string) *stage {
	t.Helper()
	st := &stage{dropInWorld: w, t: t, dir: filepath.Join(w.scene.dir, fmt.Sprintf("%s%d", side, n)), slot: fmt.Sprintf("slot_%s%d", side, n), new: fmt.Sprintf("new_%s%d", side, n)}
	if err := theLab.account.MkdirAll(st.dir); err != nil {
		t.Fatal(err)
	}
	st.ask(fmt.Sprintf("SELECT pg_copy_physical_replication_slot('template', '%s')", st.slot))
	return st
}

// ask is scene.sql for a case, which has a test of its own.
func (st *stage) ask(statement string) string {
	st.t.Helper()
	v, err := query(st.t.Context(), st.pg.DSN("postgres"), statement)
	if err != nil {
		st.t.Fatalf("%s: %v", statement, err)
	}
	return v
}

// fill puts in what stands between braces: {dir}, {slot}, {new}, {host}, {port},
// {start0} to {start5} and {in0} to {in5} for LSNs at the beginning and inside
// of the whole segments, and {flushed} for one that the server has just flushed.
func (st *stage) fill(args string) []string {
	st.t.Helper()
	pairs := []string{"{dir}", st.dir, "{slot}", st.slot, "{new}", st.new, "{host}", st.pg.SocketDir(), "{port}", fmt.Sprint(st.pg.Port())}
	for n := range st.segments {
		pairs = append(pairs, fmt.Sprintf("{start%d}", n), st.segments[n].Start(st.size).String(), fmt.Sprintf("{in%d}", n), st.inside[n].String())
	}
	if strings.Contains(args, "{flushed}") {
		lsn, err := segment.ParseLSN(st.ask("SELECT pg_current_wal_flush_lsn()"))
		if err != nil {
			st.t.Fatal(err)
		}
		pairs = append(pairs, "{flushed}", (lsn - 1).String())
	}
	return words(strings.NewReplacer(pairs...).Replace(args))
}

// perform runs a case's command line on this side.
func (st *stage) perform(r receivewal, c dropInCase) ending {
	st.t.Helper()
	if c.put != nil {
		c.put(st)
	}
	ctx, cancel := context.WithTimeout(st.t.Context(), patience)
	defer cancel()
	var meanwhile func(*os.Process)
	if c.interrupt {
		meanwhile = func(p *os.Process) {
			open := st.segments[len(st.segments)-1].Next(st.size).String()
			eventually(st.t, r.name+" to begin segment "+open, func() bool {
				found, err := filepath.Glob(filepath.Join(st.dir, open+"*"))
				return err == nil && len(found) > 0
			})
			if err := p.Signal(os.Interrupt); err != nil {
				st.t.Error(err)
			}
		}
	}
	return endingOf(ctx, st.t, r.command(ctx, libpq(st.pg), st.fill(c.args)), meanwhile)
}

// moving are LSNs in messages that are how far the server was.
var moving = regexp.MustCompile(`(stopped log streaming at|flush position of this server) [0-9A-F]+/[0-9A-F]+`)

// normalise takes out of a text what is each side's own.
func (st *stage) normalise(text string) string {
	text = strings.NewReplacer(st.dir, "{dir}", st.slot, "{slot}", st.new, "{new}").Replace(text)
	return moving.ReplaceAllString(text, "$1 {lsn}")
}

// file is what is in a directory.
type file struct {
	mode    fs.FileMode
	size    int
	content []byte // decoded
	err     error  // of decoding
}

// readDirectory reads the files in a directory.
func readDirectory(t *testing.T, dir string) map[string]file {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]file{}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		raw, err := os.ReadFile(path)
		info, statErr := os.Stat(path)
		if err := errors.Join(err, statErr); err != nil {
			t.Fatal(err)
		}
		f := file{mode: info.Mode(), size: len(raw)}
		f.content, f.err = decodeWAL(e.Name(), raw)
		all[e.Name()] = f
	}
	return all
}

// decodeWAL decodes a file of pg_receivewal's. With an error it returns what
// could be decoded.
func decodeWAL(name string, raw []byte) ([]byte, error) {
	switch filepath.Ext(strings.TrimSuffix(name, ".partial")) {
	case ".gz":
		r, err := gzip.NewReader(bytes.NewReader(raw))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(r)
	case ".lz4":
		return io.ReadAll(lz4.NewReader(bytes.NewReader(raw)))
	}
	return raw, nil
}

// compareStages compares what two sides left behind.
func compareStages(t *testing.T, original, our *stage) {
	t.Helper()
	want, got := readDirectory(t, original.dir), readDirectory(t, our.dir)
	maps.DeleteFunc(want, func(name string, _ file) bool {
		_, ours := got[name]
		return !ours && stale(name, want)
	})
	if w, g := slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)); !slices.Equal(w, g) {
		t.Errorf("files: ours has %q, the original %q", g, w)
		return
	}
	for name, w := range want {
		g := got[name]
		if g.mode != w.mode {
			t.Errorf("%s: mode %v, the original's %v", name, g.mode, w.mode)
		}
		base, partial := strings.CutSuffix(name, ".partial")
		if partial && base == strings.TrimSuffix(strings.TrimSuffix(base, ".gz"), ".lz4") && g.size != w.size {
			t.Errorf("%s: %d bytes, the original's %d", name, g.size, w.size)
		}
		if !partial {
			if (g.err == nil) != (w.err == nil) || !bytes.Equal(g.content, w.content) {
				t.Errorf("%s: %d bytes (%v), the original's %d (%v), and not the same", name, len(g.content), g.err, len(w.content), w.err)
			}
			continue
		}
		// How far the two are is not the same; what both have is, and behind
		// it are zeros.
		a, b := bytes.TrimRight(g.content, "\x00"), bytes.TrimRight(w.content, "\x00")
		n := min(len(a), len(b))
		if !bytes.Equal(a[:n], b[:n]) || (len(a) == 0) != (len(b) == 0) {
			t.Errorf("%s: not the same in the first %d bytes (ours has %d, the original %d)", name, n, len(a), len(b))
		}
	}
}

// stale reports whether a file is a partial of a segment that another file has.
// The original leaves such for ever when its method was changed.
func stale(name string, files map[string]file) bool {
	n, partial, ok := segmentOf(name)
	for other := range files {
		if m, _, is := segmentOf(other); ok && partial && is && m == n && other != name {
			return true
		}
	}
	return false
}

// compareSlots: the same slots are there; ours is not behind the original's.
func compareSlots(t *testing.T, original, our *stage) {
	t.Helper()
	state := func(st *stage, name string) string {
		return st.ask(fmt.Sprintf("SELECT coalesce((SELECT coalesce(restart_lsn::text, 'nothing reserved') FROM pg_replication_slots WHERE slot_name = '%s'), 'no slot')", name))
	}
	for _, names := range [][2]string{{original.slot, our.slot}, {original.new, our.new}} {
		want, got := state(original, names[0]), state(our, names[1])
		w, wErr := segment.ParseLSN(want)
		g, gErr := segment.ParseLSN(got)
		switch {
		case wErr != nil || gErr != nil:
			if want != got {
				t.Errorf("slot: ours %s, the original's %s", got, want)
			}
		case g < w:
			t.Errorf("slot: ours is at %s, behind the original's %s", g, w)
		}
	}
}

// TestDropIn runs the table, in a full run on every version.
func TestDropIn(t *testing.T) {
	onVersionsInFull(t, func(t *testing.T, i instance.Installation) {
		w := newDropInWorld(t, i)
		t.Run("table", func(t *testing.T) { w.cases(t, dropInTable, 0) })
		// data_directory_mode is looked at when the server starts.
		err := errors.Join(w.pg.Stop(w.ctx(), instance.Fast), os.Chmod(w.pg.DataDir(), 0o750))
		if err != nil {
			t.Fatal(err)
		}
		w.startServer()
		t.Run("group", func(t *testing.T) { w.cases(t, dropInGroupTable, len(dropInTable)) })
	})
}

// cases runs the cases of a table, several at a time, and returns when all
// have ended. Their numbers begin with first.
func (w *dropInWorld) cases(t *testing.T, table []dropInCase, first int) {
	for n, c := range table {
		if w.pg.Installation().Major < c.since {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			original, our := w.stage(t, first+n, "theirs"), w.stage(t, first+n, "ours")
			want, got := original.perform(w.original, c), our.perform(w.our, c)
			want.stderr, got.stderr = original.normalise(want.stderr), our.normalise(got.stderr)
			if want.code != c.code {
				t.Errorf("%s: %s ends with %d, not with %d: the case is not what it says", c.args, w.original.name, want.code, c.code)
			}
			same := got == want
			if c.like != "" {
				like := regexp.MustCompile(c.like)
				same = got.code == want.code && like.MatchString(got.stderr) && like.MatchString(want.stderr)
			}
			if !same {
				t.Errorf("%s\nours ends with %d and prints\n%s%s%s: %d\n%s%s", c.args, got.code, got.stdout, got.stderr, w.original.name, want.code, want.stdout, want.stderr)
			}
			compareStages(t, original, our)
			if !c.interrupt { // that comes when it comes
				compareSlots(t, original, our)
			}
		})
	}
}

// put writes a file into the side's directory, as its own run would have.
func (st *stage) put(name string, content []byte) {
	st.t.Helper()
	path := filepath.Join(st.dir, name)
	if err := errors.Join(os.WriteFile(path, content, 0o600), theLab.account.Own(path)); err != nil {
		st.t.Fatal(err)
	}
}

// wal is the server's own bytes of the n-th whole segment.
func (st *stage) wal(n int) []byte {
	st.t.Helper()
	b, err := os.ReadFile(filepath.Join(st.pg.DataDir(), "pg_wal", st.segments[n].String()))
	if err != nil {
		st.t.Fatal(err)
	}
	return b
}

// encoded is b in a file of that extension.
func encoded(t *testing.T, ext string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	switch ext {
	case ".gz":
		w = gzip.NewWriter(&out)
	case ".lz4":
		w = lz4.NewWriter(&out)
	default:
		return b
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// putWhole puts the n-th segment there, complete.
func putWhole(n int, ext string) func(*stage) {
	return func(st *stage) {
		st.put(st.segments[n].String()+ext, encoded(st.t, ext, st.wal(n)))
	}
}

// putPartial puts the first bytes of the n-th segment there, as an interrupted
// run leaves them: padded where it is not compressed.
func putPartial(n int, ext string) func(*stage) {
	return func(st *stage) {
		b := slices.Clone(st.wal(n))
		half := len(b) / 8
		if ext == "" {
			clear(b[half:])
		} else {
			b = b[:half]
		}
		st.put(st.segments[n].String()+ext+".partial", encoded(st.t, ext, b))
	}
}

// putBytes puts a file of the n-th segment's name there with other content.
func putBytes(n int, ext string, content []byte) func(*stage) {
	return func(st *stage) { st.put(st.segments[n].String()+ext, content) }
}

// putAs puts a file with a name of its own there.
func putAs(name string, content []byte) func(*stage) {
	return func(st *stage) { st.put(name, content) }
}

// putAll puts several there.
func putAll(all ...func(*stage)) func(*stage) {
	return func(st *stage) {
		for _, put := range all {
			put(st)
		}
	}
}

// putLocked puts a directory there that cannot be opened.
func putLocked(name string) func(*stage) {
	return func(st *stage) {
		dir := filepath.Join(st.dir, name)
		if err := errors.Join(theLab.account.MkdirAll(dir), os.Chmod(dir, 0)); err != nil {
			st.t.Fatal(err)
		}
	}
}
