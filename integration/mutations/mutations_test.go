// Package mutations tests the tests: each row of its table breaks one promise
// of the program in a copy of the module, and the tests of the package where
// that promise lives must fail.
//
// A run takes a few rows at random and prints its seed; WALFERRY_SEED repeats
// one. WALFERRY_FULL=1 takes every row, of which -run TestMutations/receiver/ (or
// any other part of a file's path) chooses some. That all rows fit the code is checked each time.
package mutations

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// sample is how many rows a run takes.
const sample = 4

// patience is how long one row may take on a busy machine: it compiles a
// package's tests, and runs some.
const patience = 10 * time.Minute

// module is the root of this module.
func module(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// mutate returns the content of m's file, changed.
func (m mutation) mutate(content []byte) ([]byte, error) {
	if n := bytes.Count(content, []byte(m.old)); n != 1 {
		return nil, fmt.Errorf("%s: %q occurs %d times: the row (%s) must follow the code", m.file, m.old, n, m.breaks)
	}
	return bytes.Replace(content, []byte(m.old), []byte(m.new), 1), nil
}

// TestRows: every row fits the code, and every promise has one.
func TestRows(t *testing.T) {
	root := module(t)
	rows := map[string]int{}
	for _, m := range table() {
		rows[m.promise]++
		content, err := os.ReadFile(filepath.Join(root, m.file))
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := m.mutate(content); err != nil {
			t.Error(err)
		}
		if m.old == m.new {
			t.Errorf("%s: the row (%s) changes nothing", m.file, m.breaks)
		}
		if _, err := regexp.Compile(m.run); err != nil || m.run == "" {
			t.Errorf("%s: %q names no tests", m.file, m.run)
		}
	}
	for _, p := range promises() {
		if rows[p] == 0 {
			t.Errorf("%s has no row", p)
		}
		delete(rows, p)
	}
	for p := range rows {
		t.Errorf("%s is no promise", p)
	}
}

// TestMutations applies rows one after the other, each alone.
func TestMutations(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: no mutations")
	}
	rows := table()
	if os.Getenv("WALFERRY_FULL") == "" {
		rows = chosen(t, rows)
	}
	dir := copyModule(t)
	sound := map[string]bool{} // what passes in the copy as it is
	for _, m := range rows {
		t.Run(path.Join(m.file, m.breaks), func(t *testing.T) {
			if key := m.pkg + " " + m.run; !sound[key] {
				if out, err := goTest(t, dir, m); err != nil || strings.Contains(out, "no tests to run") {
					t.Fatalf("the tests must pass before the change: %v\n%s", err, out)
				}
				sound[key] = true
			}
			file := filepath.Join(dir, m.file)
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			changed, err := m.mutate(content)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, changed, 0o600); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := os.WriteFile(file, content, 0o600); err != nil {
					t.Fatal(err)
				}
			}()
			out, err := goTest(t, dir, m)
			switch {
			case err == nil:
				t.Errorf("survived: %s (%s) in %s\n-%s\n+%s\nand the tests of ./%s matching %q pass", m.breaks, m.promise, m.file, m.old, m.new, m.pkg, m.run)
			case !caught(out):
				t.Errorf("no test has failed, so that the row proves nothing: %v\n%s", err, out)
			}
		})
	}
}

// chosen returns some rows, at random.
func chosen(t *testing.T, rows []mutation) []mutation {
	t.Helper()
	seed := rand.Uint64()
	if v := os.Getenv("WALFERRY_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("WALFERRY_SEED: %v", err)
		}
	}
	t.Logf("WALFERRY_SEED=%d: %d of %d rows", seed, sample, len(rows))
	rng := rand.New(rand.NewPCG(seed, 0))
	rng.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	return rows[:sample]
}

// caught tells a test that failed, by itself or by a panic or its time limit,
// from a copy that does not compile.
func caught(out string) bool {
	if strings.Contains(out, "[build failed]") || strings.Contains(out, "[setup failed]") {
		return false
	}
	return strings.Contains(out, "--- FAIL: ") || strings.Contains(out, "panic: ") || strings.Contains(out, "fatal error: ")
}

// goTest runs m's tests in the copy. -trimpath lets what is not changed come
// from the build cache, wherever the copy lies; vet would hold a change for a
// mistake, which it is.
func goTest(t *testing.T, dir string, m mutation) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-trimpath", "-vet=off", "-failfast", "-timeout=3m", "-run", m.run, "./"+m.pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "WALFERRY_FULL=") // the tests' own rounds are as usual
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("not done after %v\n%s", patience, out)
	}
	return string(out), err
}

// copyModule copies the files of this module that git knows, as they are now.
func copyModule(t *testing.T) string {
	t.Helper()
	root, dir := module(t), t.TempDir()
	cmd := exec.CommandContext(t.Context(), "git", "-c", "safe.directory=*", "ls-files", "-z")
	cmd.Dir = root
	list, err := cmd.Output()
	if err != nil {
		t.Skipf("NO MUTATIONS: this is no git checkout: %v", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		from, to := filepath.Join(root, name), filepath.Join(dir, name)
		content, err := os.ReadFile(from)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted and not yet committed
		}
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, content, info.Mode().Perm()|0o200); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
