package integration

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// demo starts "walferry demo" in a temporary directory of its own, as the
// lab's account or as the user of the tests, and at the end of the test wants
// nothing to be left.
func demo(t *testing.T, asAccount bool) *process {
	t.Helper()
	if theLab.missing != "" {
		t.Skip("NOT TESTED: " + theLab.missing)
	}
	binary, err := theLab.binary()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(theLab.dir, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left := tree(t, dir); len(left) > 0 {
			t.Errorf("the demonstration left %v", left)
		}
		for _, c := range commandLines(t) {
			if strings.Contains(c, dir) {
				t.Errorf("the demonstration left a process: %s", c)
			}
		}
	})
	// A person's own server and settings must not matter.
	env := []string{"TMPDIR=" + dir, "PGHOST=/nowhere", "PGPORT=1", "PGSERVICE=none", "PGDATABASE=none",
		"PATH=" + theLab.main.Bin + ":/usr/bin:/bin"}
	if asAccount {
		return start(t, env, binary, "demo")
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), binary, "demo")
	cmd.Dir = "/"
	cmd.Env = append(env, "HOME="+dir)
	return run(t, cmd)
}

// commandLines are those of all processes, where the system tells them.
func commandLines(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil { // else it has ended
			all = append(all, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return all
}

// The story ends well, as root and as an ordinary user, and claims what it
// counted.
func TestDemo(t *testing.T) {
	for name, asAccount := range map[string]bool{"as an ordinary user": true, "as the user of the tests": false} {
		if !asAccount && !theLab.account.Other() {
			continue // they are the same
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := demo(t, asAccount)
			p.exits(0)
			story := p.stdout.String()
			counts := regexp.MustCompile(`Recovered: ([\d,]+) of ([\d,]+) acknowledged rows. Missing: 0\.`).FindStringSubmatch(story)
			if counts == nil || counts[1] == "0" || counts[1] != counts[2] || strings.Contains(story, " and 0 tail objects") {
				t.Errorf("the story is\n%s", story)
			}
			if p.log() != story {
				t.Errorf("something was said beside the story:\n%s", p.log())
			}
			if n := strings.Count(story, "\n"); n > 18 {
				t.Errorf("the story has %d lines", n)
			}
		})
	}
}

// A demonstration that is interrupted is cleaned up as well.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	p := demo(t, false)
	p.awaitLog(`3\. `)
	p.signal(syscall.SIGINT)
	if code := p.wait(); code == 0 {
		t.Error("it ended with 0")
	}
}
