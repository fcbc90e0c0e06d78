package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/walferry/walferry/integration/s3server"
)

// block is a fenced block of the README with what the comment in front of it
// says: "<!-- quick start: WHERE, OPTION, … -->".
type block struct {
	line    int
	where   string
	options []string
	text    string
}

var (
	fence = regexp.MustCompile("(?m)^(?:<!-- quick start: (.*) -->\n)?```([a-z]*)\n((?s:.*?))^```$")
	// example is what stands in the README for the reader's own.
	example = map[string]string{"PGHOST": "db1.example.com", "PGPORT": "5432", "AWS_REGION": "eu-central-1", "WALFERRY_HOME": "/var/lib/walferry"}
)

// readBlocks returns the blocks of a document that have a comment. Of its shell
// blocks none may be without one: each is run.
func readBlocks(t *testing.T, path string) []block {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var blocks []block
	for _, m := range fence.FindAllSubmatchIndex(content, -1) {
		b := block{line: 1 + bytes.Count(content[:m[0]], []byte("\n")), text: string(content[m[6]:m[7]])}
		if m[2] < 0 {
			if string(content[m[4]:m[5]]) == "sh" {
				t.Errorf("%s:%d: a shell block that no test runs", path, b.line)
			}
			continue
		}
		parts := strings.Split(string(content[m[2]:m[3]]), ", ")
		b.where, b.options = parts[0], parts[1:]
		blocks = append(blocks, b)
	}
	return blocks
}

func (b block) has(option string) bool { return slices.Contains(b.options, option) }

// until is the pattern that the block's output must match in the end; nil: it
// is run once.
func (b block) until() *regexp.Regexp {
	for _, o := range b.options {
		if p, ok := strings.CutPrefix(o, "until "); ok {
			return regexp.MustCompile(p)
		}
	}
	return nil
}

// guide follows the README. The two hosts are one; each has a home directory
// and variables of its own, which its blocks leave to each other.
type guide struct {
	*scene
	s3       *s3server.Server
	receiver *process
	vars     map[string][]string // by host: what its terminals have
	output   string              // of the last block
	now      string              // what now() has shown
}

const (
	databaseHost = "database host"
	walferryHost = "walferry's host"
	bucketName   = "acme-wal"
)

// The README's quick start and restore, command by command, against a real
// cluster and a real S3 server, as a user with the README's policy.
func TestReadme(t *testing.T) {
	blocks := readBlocks(t, "../README.md")
	if len(blocks) < 15 {
		t.Fatalf("%d blocks of the quick start were found", len(blocks))
	}
	var hba []string
	for _, b := range blocks {
		if b.where == "pg_hba.conf" {
			hba = strings.Split(strings.TrimSpace(replace(t, b, "192.0.2.10", "127.0.0.1")), "\n")
		}
	}
	g := &guide{scene: newScene(t, options{segmentSize: 16, listen: true, hba: hba}), s3: s3server.Start(t)}
	path := fmt.Sprintf("PATH=%s:%s", filepath.Dir(g.binary), "/usr/local/bin:/usr/bin:/bin")
	g.vars = map[string][]string{
		databaseHost: {"PATH=" + g.pg.Installation().Bin + ":/usr/bin:/bin", "PGHOST=" + g.pg.SocketDir(), fmt.Sprint("PGPORT=", g.pg.Port()), "PGUSER=postgres"},
		walferryHost: {path, "HOME=" + g.home, "AWS_ENDPOINT_URL=" + g.s3.URL},
	}
	for _, b := range blocks {
		g.follow(b)
		if t.Failed() {
			t.Fatalf("README.md:%d: following %q ends here", b.line, b.where)
		}
	}
}

func (g *guide) follow(b block) {
	t := g.t
	t.Helper()
	t.Logf("README.md:%d: %s", b.line, b.where)
	file, isFile := strings.CutPrefix(b.where, "file ~/")
	switch {
	case isFile:
		g.writeHome(file, b.text)
	case b.where == "policy":
		g.makeUser(b)
	case b.where == "pg_hba.conf": // the server has it from the start
	case b.where == "settings":
		text := b.text
		for name, value := range example {
			text = replace(t, block{line: b.line, text: text}, name+"="+value, name+"="+map[string]string{
				"PGHOST": "127.0.0.1", "PGPORT": strconv.Itoa(g.pg.Port()), "AWS_REGION": "us-east-1", "WALFERRY_HOME": filepath.Join(g.home, "state"),
			}[name])
		}
		g.run(walferryHost, replace(t, block{line: b.line, text: text}, "/usr/lib/postgresql/15/bin", g.pg.Installation().Bin))
	case b.where == "time":
		if g.now == "" {
			t.Fatal("no time was shown")
		}
		g.run(walferryHost, regexp.MustCompile(`'[^']*'`).ReplaceAllString(b.text, "'"+g.now+"'"))
	case b.where == "receiver":
		if g.receiver != nil {
			g.receiver.stop()
		}
		g.receiver = run(t, g.command(walferryHost, "exec "+b.text, true))
		g.receiver.awaitLog(`walferry: streaming `)
		if b.has("of the recovered server") {
			g.awaitObjects("*.partial.lz4")
		}
	case b.where == "shows":
		if got, want := strings.TrimSpace(g.output), strings.TrimSpace(b.text); !strings.HasSuffix(got, want) {
			t.Errorf("the last block printed\n%s\nand README.md:%d says\n%s", got, b.line, want)
		}
	case b.where == databaseHost:
		g.run(databaseHost, b.text)
		if b.has("time") {
			g.now = regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\d [0-9:.]+[+-]\d\d$`).FindString(g.output)
		}
		if b.has("and then it dies") {
			eventually(t, "the receiver to have it all", func() bool {
				return g.sql("SELECT write_lsn = pg_current_wal_lsn() FROM pg_stat_replication WHERE application_name = 'walferry'") == "t"
			})
			if err := g.pg.Kill(g.ctx()); err != nil {
				t.Fatal(err)
			}
		}
	case b.where == walferryHost:
		if b.has("when the server is back and the receiver is stopped") {
			g.receiver.stop()
			g.startServer()
		}
		g.onWalferryHost(b)
	default:
		t.Errorf("%q is no place", b.where)
	}
}

func (g *guide) onWalferryHost(b block) {
	t := g.t
	t.Helper()
	ours := true
	if b.has("with aws") {
		if why := noAWS(t); why != "" {
			t.Logf("NOT TESTED: README.md:%d: %s", b.line, why)
			return
		}
		ours = false
	}
	until := b.until()
	if until == nil {
		g.run(walferryHost, b.text)
		for _, dir := range regexp.MustCompile(`pg_ctl -D ~/(\S+)`).FindAllStringSubmatch(b.text, -1) {
			g.stopLater(filepath.Join(g.home, dir[1]))
		}
		return
	}
	eventually(t, fmt.Sprintf("README.md:%d to show %s", b.line, until), func() bool {
		out, err := g.command(walferryHost, b.text, ours).CombinedOutput()
		g.output = string(out)
		if err != nil {
			t.Logf("%v: %s", err, out)
		}
		return err == nil && until.MatchString(g.output)
	})
}

// run runs a block that must succeed.
func (g *guide) run(host, text string) {
	g.t.Helper()
	out, err := g.command(host, text, true).CombinedOutput()
	g.output = string(out)
	if err != nil {
		logs, _ := filepath.Glob(filepath.Join(g.home, "*.log"))
		for _, name := range logs {
			content, readErr := os.ReadFile(name)
			g.t.Logf("%s (%v):\n%s", name, readErr, content)
		}
		g.t.Fatalf("%v:\n%s%s", err, text, out)
	}
}

// command prepares a block in a terminal on the host: as the lab's account, or
// as the user who runs the test, whose aws may be out of others' reach. What it
// exports is there in the blocks that follow.
func (g *guide) command(host, text string, asAccount bool) *exec.Cmd {
	g.t.Helper()
	ctx := context.WithoutCancel(g.t.Context())
	state := filepath.Join(g.home, ".exports-of-"+map[string]string{databaseHost: "database", walferryHost: "walferry"}[host])
	script := "set -eu\nif [ -e '" + state + "' ]; then . '" + state + "'; fi\ncd \"$HOME\"\n" + text
	cmd := theLab.account.Command(ctx, "/bin/sh", "-c", script)
	if !asAccount {
		cmd = exec.CommandContext(ctx, "/bin/sh", "-c", script)
		cmd.Env = []string{"AWS_EC2_METADATA_DISABLED=true"}
	} else if !strings.HasPrefix(text, "exec ") {
		cmd.Args[2] += "\nexport -p >'" + state + "'\n"
	}
	cmd.Env = append(cmd.Env, "HOME="+g.home)
	cmd.Env = append(cmd.Env, g.vars[host]...)
	if !asAccount {
		cmd.Args[2] = strings.Replace(script, "cd ", "PATH='"+os.Getenv("PATH")+"'\ncd ", 1)
	}
	return cmd
}

// awaitObjects waits until the bucket has an object for each pattern.
func (g *guide) awaitObjects(patterns ...string) {
	g.t.Helper()
	for _, p := range patterns {
		eventually(g.t, p+" to be in the bucket", func() bool {
			found, err := filepath.Glob(filepath.Join(g.s3.Dir, bucketName, "db1/wal_005", p))
			return err == nil && len(found) == 1
		})
	}
}

// stopLater ends a server that a block has started.
func (g *guide) stopLater(dir string) {
	program := g.pg.Installation().Program("pg_ctl")
	g.t.Cleanup(func() {
		out, err := theLab.account.Command(context.WithoutCancel(g.t.Context()), program, "-D", dir, "-m", "immediate", "stop").CombinedOutput()
		if err != nil {
			g.t.Errorf("%v\n%s", err, out)
		}
	})
}

// makeUser makes the bucket, and the user whose keys the README shows, with
// the README's policy: a bucket's instead of a user's, since only buckets have
// policies on the server of the tests.
func (g *guide) makeUser(b block) {
	t := g.t
	t.Helper()
	var policy struct {
		Version   string
		Statement []map[string]any
	}
	if err := json.Unmarshal([]byte(b.text), &policy); err != nil {
		t.Fatalf("README.md:%d: %v", b.line, err)
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	key := regexp.MustCompile(`aws_access_key_id = (\S+)\naws_secret_access_key = (\S+)`).FindSubmatch(readme)
	if key == nil {
		t.Fatal("the README has no keys")
	}
	var actions []string
	for _, s := range policy.Statement {
		s["Principal"] = string(key[1])
		for _, a := range s["Action"].([]any) {
			actions = append(actions, a.(string))
		}
	}
	if want := []string{"s3:PutObject", "s3:GetObject", "s3:ListBucket"}; !slices.Equal(actions, want) {
		t.Fatalf("README.md:%d: the policy has %q, want %q", b.line, actions, want)
	}
	text, err := json.Marshal(policy)
	if err != nil {
		t.Fatal(err)
	}
	g.s3.MakeBucket(t, bucketName)
	program, err := s3server.Program()
	if err != nil {
		t.Fatal(err)
	}
	// Keys that everybody knows, on the command line of a child; they open a throw-away server.
	out, err := exec.CommandContext(g.ctx(), program, "admin", "--endpoint-url", g.s3.URL, "--access", g.s3.Root.AccessKey, "--secret", g.s3.Root.SecretKey,
		"create-user", "--access", string(key[1]), "--secret", string(key[2]), "--role", "user").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	client := s3.New(s3.Options{
		BaseEndpoint: &g.s3.URL, Region: "us-east-1", UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(g.s3.Root.AccessKey, g.s3.Root.SecretKey, ""),
	})
	if _, err := client.PutBucketPolicy(g.ctx(), &s3.PutBucketPolicyInput{Bucket: aws.String(bucketName), Policy: aws.String(string(text))}); err != nil {
		t.Fatal(err)
	}
}

// noAWS says why the aws program cannot be used; "" when it can: there is one,
// and it is new enough to look at AWS_ENDPOINT_URL. An older one would go to
// Amazon.
func noAWS(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "aws", "--version").CombinedOutput()
	if err != nil {
		return fmt.Sprintf("no aws program: %v", err)
	}
	m := regexp.MustCompile(`aws-cli/(\d+)\.(\d+)`).FindSubmatch(out)
	if m == nil {
		return fmt.Sprintf("aws --version says %s", out)
	}
	major, _ := strconv.Atoi(string(m[1]))
	minor, _ := strconv.Atoi(string(m[2]))
	if major == 1 && minor < 29 || major == 2 && minor < 13 {
		return fmt.Sprintf("%s is too old to look at AWS_ENDPOINT_URL", m[0])
	}
	return ""
}

// replace puts the test's own value into the place of the README's. The
// README must have it.
func replace(t *testing.T, b block, old, value string) string {
	t.Helper()
	if !strings.Contains(b.text, old) {
		t.Fatalf("README.md:%d: %q is not there", b.line, old)
	}
	return strings.ReplaceAll(b.text, old, value)
}
