package restore

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// failingFiles are the host's files, but the operation numbered failAt fails
// (from 1; 0: none), and those behind it.
type failingFiles struct {
	failAt int
	err    error
	ops    []string
}

func (f *failingFiles) step(op string) error {
	f.ops = append(f.ops, op)
	if f.failAt > 0 && len(f.ops) >= f.failAt && op != "remove" {
		return f.err
	}
	return nil
}

func (f *failingFiles) createTemp(dir, pattern string) (file, error) {
	if err := f.step("create"); err != nil {
		return nil, err
	}
	t, err := os.CreateTemp(dir, pattern)
	return &failingFile{t, f}, err
}

func (f *failingFiles) rename(from, to string) error {
	return errors.Join(f.step("rename"), func() error {
		if f.failAt > 0 && len(f.ops) >= f.failAt {
			return nil
		}
		return os.Rename(from, to)
	}())
}

func (f *failingFiles) remove(name string) error {
	return errors.Join(f.step("remove"), os.Remove(name))
}

func (f *failingFiles) syncDir(dir string) error {
	return errors.Join(f.step("syncdir"), osFiles{}.syncDir(dir))
}

type failingFile struct {
	*os.File
	all *failingFiles
}

func (f *failingFile) Chmod(mode os.FileMode) error {
	return errors.Join(f.all.step("chmod"), f.File.Chmod(mode))
}

func (f *failingFile) Write(p []byte) (int, error) {
	if err := f.all.step("write"); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f *failingFile) WriteAt(p []byte, at int64) (int, error) {
	if err := f.all.step("writeat"); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, at)
}

func (f *failingFile) Sync() error  { return errors.Join(f.all.step("sync"), f.File.Sync()) }
func (f *failingFile) Close() error { return errors.Join(f.all.step("close"), f.File.Close()) }

// TestInstallOrder fails each step in turn: before the rename the target is
// as it was, and nothing counts as delivered before the directory is synced.
func TestInstallOrder(t *testing.T) {
	order := []string{"create", "chmod", "write", "sync", "close", "rename", "syncdir"}
	content := []byte("1\t0/500000\tno recovery target specified\n")
	broken := errors.New("broken disk")
	for failAt := 0; failAt <= len(order); failAt++ {
		f := newFixture(t, Standby)
		f.put("00000002.history.lz4", content)
		all := &failingFiles{failAt: failAt, err: broken}
		f.files = all
		f.options.Budget = time.Millisecond // one attempt
		synctest.Test(t, func(t *testing.T) {
			err := f.fetch(t.Context(), "00000002.history")
			if failAt == 0 {
				if err != nil || !slices.Equal(all.ops, order) || !bytes.Equal(f.content(), content) {
					t.Errorf("err %v, steps %v", err, all.ops)
				}
				return
			}
			if !errors.Is(err, broken) {
				t.Errorf("%s failed: %v", order[failAt-1], err)
			}
			if there := f.content() != nil; there != (order[failAt-1] == "syncdir") {
				t.Errorf("%s failed: target there: %v", order[failAt-1], there)
			}
		})
		if left := f.leftovers(); len(left) > 0 {
			t.Errorf("step %d: left over: %v", failAt, left)
		}
	}
}

// TestDiscard: who dies in the middle leaves nothing behind.
func TestDiscard(t *testing.T) {
	f := newFixture(t, Recovery)
	fetcher := NewFetcher(f.options)
	fetcher.Discard() // nothing to do
	err := fetcher.install(f.target, func(w io.Writer) error {
		if len(f.leftovers()) != 1 {
			t.Errorf("temporary files: %v", f.leftovers())
		}
		fetcher.Discard()
		if len(f.leftovers()) != 0 {
			t.Errorf("left over: %v", f.leftovers())
		}
		return nil
	})
	if err == nil || f.content() != nil {
		t.Errorf("a discarded file was installed: %v", err)
	}
}

// TestSweep: what a killed process left is removed once it is old.
func TestSweep(t *testing.T) {
	f := newFixture(t, Standby)
	for name, age := range map[string]time.Duration{
		temporaryPrefix + "RECOVERYXLOG.1": 2 * time.Hour,
		temporaryPrefix + "RECOVERYXLOG.2": time.Minute,
		"000000010000000000000001":         2 * time.Hour,
	} {
		f.write("pg_wal/"+name, []byte("x"))
		then := time.Now().Add(-age)
		if err := os.Chtimes(filepath.Join(f.dir, "pg_wal", name), then, then); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.fetch(t.Context(), name(1, 5).String()); !errors.Is(err, ErrAbsent) {
		t.Fatal(err)
	}
	if left := f.leftovers(); len(left) != 1 || filepath.Base(left[0]) != temporaryPrefix+"RECOVERYXLOG.2" {
		t.Errorf("left: %v", left)
	}
	if _, err := os.Stat(filepath.Join(f.dir, "pg_wal", "000000010000000000000001")); err != nil {
		t.Error(err)
	}
}
