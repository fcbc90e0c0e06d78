package archive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/segment"
)

// fate is what happens to the n-th call of a store.
type fate int

const (
	failsBefore fate = iota // it does nothing and fails
	failsBehind             // it does its work, and the answer is lost
	diesBefore              // the process dies before it
	diesBehind              // the process dies when it did its work
)

func (f fate) String() string {
	return [...]string{"fails", "answer lost", "dies before", "dies behind"}[f]
}

var errFate = errors.New("503 Slow Down")

// watched is a store in memory of which one process sees a call fail, or dies
// in it. always is called around every call: what must be so at any time.
type watched struct {
	*mem.Store

	mu     sync.Mutex
	n      int // of the call that fails; 0: none
	fate   fate
	calls  int
	dead   bool
	always func()
}

func newWatched() *watched {
	w := &watched{}
	w.Store = mem.NewWith(mem.Options{
		Before: func(context.Context, mem.Op, string) error { return w.step(failsBefore, diesBefore) },
		After:  func(context.Context, mem.Op, string) error { return w.step(failsBehind, diesBehind) },
	})
	return w
}

func (w *watched) step(fails, dies fate) error {
	if w.always != nil {
		// It asks the store, too: those calls are not the process's.
		always := w.always
		w.always = nil
		always()
		w.always = always
	} else {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if fails == failsBefore {
		w.calls++
	}
	mine := w.calls == w.n && w.n > 0
	if mine && w.fate == dies {
		w.dead = true
	}
	if w.dead || mine && w.fate == fails {
		return errFate
	}
	return nil
}

// wholeOrNothing makes sure that a backup whose sentinel is there is whole.
func wholeOrNothing(t *testing.T, store objstore.Store) (n int) {
	t.Helper()
	a := New(store, Options{})
	all, err := a.Backups(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		mustBeWhole(t, a, b)
	}
	return len(all)
}

// TestTakeBackupSweep: every call of a backup fails in turn, loses its answer,
// or is the last of the process. At every moment there is a whole backup or
// none; afterwards nothing hinders the next, and what is left can be deleted.
func TestTakeBackupSweep(t *testing.T) {
	for _, f := range []fate{failsBefore, failsBehind, diesBefore, diesBehind} {
		succeeded := 0
		for n := 1; ; n++ {
			store := newWatched()
			put(t, store.Store, identityKey, mustIdentity(t, Identity{exampleSentinel().SystemIdentifier, m16, "lz4"}))
			store.always = func() { wholeOrNothing(t, store.Store) }
			store.n, store.fate = n, f
			a := New(store.Store, Options{})
			_, err := take(t.Context(), a)
			store.always = nil // from here on a healthy store, and another process
			reached := store.calls >= n
			if !reached && err != nil {
				t.Fatal(err)
			}
			there := wholeOrNothing(t, store.Store)
			switch {
			case err == nil && there != 1:
				t.Errorf("call %d %s: it succeeded, and there are %d backups", n, f, there)
			case err != nil && !errors.Is(err, errFate):
				t.Errorf("call %d %s: %v", n, f, err)
			case err == nil && reached:
				succeeded++
			}
			if there == 1 && err != nil && f != diesBehind {
				t.Errorf("call %d %s: it failed (%v), and there is a backup", n, f, err)
			}
			next := mustTake(t, a)
			if got := wholeOrNothing(t, store.Store); got != there+1 {
				t.Errorf("call %d %s: %d backups after the next, want %d", n, f, got, there+1)
			}
			if _, err := a.SweepBackupUploads(t.Context(), -time.Hour); err != nil {
				t.Error(err)
			}
			if left := store.Uploads(); len(left) != 0 {
				t.Errorf("call %d %s: uploads are left: %q", n, f, left)
			}
			first := nameBackup(startOf, m16, 0)
			for _, name := range []BackupName{first, next.Name} {
				if err := a.DeleteBackup(t.Context(), name); err != nil && !errors.Is(err, ErrNotFound) {
					t.Errorf("call %d %s: %v", n, f, err)
				}
			}
			if left := keysOf(t, store.Store); !slices.Equal(left, []string{identityKey}) {
				t.Errorf("call %d %s: objects are left: %q", n, f, left)
			}
			if !reached {
				if n != 13 {
					t.Errorf("only %d calls", n-1)
				}
				break
			}
		}
		// Of an answer that is lost it is found out what it was, where there
		// is one object to look at.
		if want := map[fate]int{failsBehind: 6}[f]; succeeded != want {
			t.Errorf("%s: %d times it succeeded all the same, want %d", f, succeeded, want)
		}
	}
}

// TestDeleteBackupSweep: the same of a deletion.
func TestDeleteBackupSweep(t *testing.T) {
	for _, f := range []fate{failsBefore, failsBehind, diesBefore, diesBehind} {
		for n := 1; ; n++ {
			store := newWatched()
			a := New(store.Store, Options{})
			b := mustTake(t, a)
			store.always = func() { wholeOrNothing(t, store.Store) }
			store.n, store.fate = n, f
			err := a.DeleteBackup(t.Context(), b.Name)
			store.always = nil
			reached := store.calls >= n
			if reached == (err == nil) {
				t.Errorf("call %d %s: %v", n, f, err)
			}
			wholeOrNothing(t, store.Store)
			// As long as anything is left, the name is not given away.
			taken := len(keysOf(t, store.Store)) > 0
			w, nameErr := a.NewBackup(t.Context(), startOf, m16)
			if nameErr != nil || (w.Name() == b.Name) == taken {
				t.Errorf("call %d %s: the next is called %s (%v), objects are left: %v", n, f, w.Name(), nameErr, taken)
			}
			err = a.DeleteBackup(t.Context(), b.Name)
			if err != nil && !(errors.Is(err, ErrNotFound) && !slices.ContainsFunc(keysOf(t, store.Store), func(key string) bool { return strings.Contains(key, b.Name.String()) })) {
				t.Errorf("call %d %s, again: %v", n, f, err)
			}
			if w.Name() != b.Name {
				if err := a.DeleteBackup(t.Context(), w.Name()); err != nil {
					t.Error(err)
				}
			}
			if left := keysOf(t, store.Store); len(left) != 0 {
				t.Errorf("call %d %s: objects are left: %q", n, f, left)
			}
			if !reached {
				if n < 9 {
					t.Errorf("only %d calls", n-1)
				}
				break
			}
		}
	}
}

// The sentinel goes before everything else, and the mark of the name after it.
func TestDeleteOrder(t *testing.T) {
	var deleted []string
	store := mem.NewWith(mem.Options{Before: func(_ context.Context, op mem.Op, key string) error {
		if op == mem.Delete {
			deleted = append(deleted, key)
		}
		return nil
	}})
	a := New(store, Options{})
	b := mustTake(t, a)
	other := mustTake(t, a)
	if err := a.DeleteBackup(t.Context(), b.Name); err != nil {
		t.Fatal(err)
	}
	if len(deleted) != 7 || deleted[0] != b.Name.sentinelKey() || deleted[6] != b.Name.folder()+"attempt.json" {
		t.Errorf("deleted %q", deleted)
	}
	if all, err := a.Backups(t.Context()); err != nil || len(all) != 1 || all[0].Name != other.Name {
		t.Errorf("%+v, %v", all, err)
	}
	denied := mem.NewWith(mem.Options{Before: func(_ context.Context, op mem.Op, _ string) error {
		if op == mem.Delete || op == mem.AbortUploads {
			return objstore.ErrDenied
		}
		return nil
	}})
	a = New(denied, Options{})
	b = mustTake(t, a)
	if err := a.DeleteBackup(t.Context(), b.Name); !errors.Is(err, objstore.ErrDenied) || !strings.Contains(err.Error(), b.Name.String()) {
		t.Errorf("%v", err)
	}
	if n := wholeOrNothing(t, denied); n != 1 {
		t.Errorf("%d backups after a deletion that was denied", n)
	}
	if _, err := a.SweepBackupUploads(t.Context(), time.Hour); !errors.Is(err, objstore.ErrDenied) {
		t.Errorf("%v", err)
	}
}

func TestSweepBackupUploads(t *testing.T) {
	store := mem.New()
	a := New(store, Options{})
	w, err := a.NewBackup(t.Context(), startOf, m16)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.BeginPart(t.Context(), "part_001.tar.lz4"); err != nil {
		t.Fatal(err)
	}
	if _, err := store.BeginUpload(t.Context(), "wal_005/x"); err != nil {
		t.Fatal(err)
	}
	for age, want := range map[time.Duration]int{time.Hour: 0, -time.Hour: 1} {
		if n, err := a.SweepBackupUploads(t.Context(), age); err != nil || n != want {
			t.Errorf("older than %v: %d, %v; want %d", age, n, err, want)
		}
		if age > 0 {
			continue
		}
		if left := store.Uploads(); !slices.Equal(left, []string{"wal_005/x"}) {
			t.Errorf("uploads that are left: %q", left)
		}
		return
	}
}

// Attempts with one start LSN get names of their own, at whatever moment they
// begin, and whatever was left of the others.
func TestNewBackup(t *testing.T) {
	store := mem.New()
	a := New(store, Options{})
	// The third name is that of a backup of which the sentinel alone is left,
	// the fifth has a part.
	put(t, store, nameBackup(startOf, m16, 2).sentinelKey(), []byte("{}"))
	put(t, store, nameBackup(startOf, m16, 4).folder()+"tar_partitions/x", nil)
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		names []string
		taken []*NamesTakenError
	)
	for range 9 {
		wg.Go(func() {
			w, err := a.NewBackup(t.Context(), startOf, m16)
			mu.Lock()
			defer mu.Unlock()
			var full *NamesTakenError
			switch {
			case err == nil:
				names = append(names, w.Name().String())
			case errors.As(err, &full):
				taken = append(taken, full)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	slices.Sort(names)
	var want []string
	for i := range attempts {
		if i != 2 && i != 4 {
			want = append(want, nameBackup(startOf, m16, i).String())
		}
	}
	if !slices.Equal(names, want) || len(taken) != 3 {
		t.Errorf("names %q, and %d times there was none; want %q", names, len(taken), want)
	}
	for _, e := range taken {
		if len(e.Names) != attempts || e.Start != startOf || !strings.Contains(e.Error(), "base_00000001000000000000000C_0000002F") || !strings.Contains(e.Error(), "0/C000028 on timeline 1") {
			t.Errorf("%v", e)
		}
	}
	// Another start LSN, timeline or segment size is another matter.
	for _, c := range []struct {
		at   segment.Position
		size segment.Size
		want string
	}{
		{segment.Position{Timeline: 1, LSN: 0xC000030}, m16, "base_00000001000000000000000C_00000030"},
		{segment.Position{Timeline: 2, LSN: 0xC000028}, m16, "base_00000002000000000000000C_00000028"},
		{segment.Position{Timeline: 1, LSN: 0xC000028}, 64 << 20, "base_000000010000000000000003_00000028"},
	} {
		if w, err := a.NewBackup(t.Context(), c.at, c.size); err != nil || w.Name().String() != c.want {
			t.Errorf("%s: %v, want %s", c.at, err, c.want)
		}
	}
	for _, at := range []segment.Position{{}, {Timeline: 1}, {LSN: 8}, {Timeline: 1, LSN: 0xC000029}} {
		if _, err := a.NewBackup(t.Context(), at, m16); err == nil {
			t.Errorf("a backup that starts at %s has a name", at)
		}
	}
	if _, err := a.NewBackup(t.Context(), startOf, 5); err == nil {
		t.Error("a segment size that no cluster has is taken")
	}
}

// What would be no good backup is refused before its sentinel is stored.
func TestCommitRefuses(t *testing.T) {
	for what, change := range map[string]func(w *BackupWriter, store *mem.Store, s *Sentinel, f *BackupFacts){
		"is not there": func(w *BackupWriter, store *mem.Store, _ *Sentinel, _ *BackupFacts) {
			if err := store.Delete(t.Context(), w.Name().folder()+"tar_partitions/part_001.tar.lz4"); err != nil {
				t.Fatal(err)
			}
		},
		"backup_manifest is not there": func(w *BackupWriter, store *mem.Store, _ *Sentinel, _ *BackupFacts) {
			if err := store.Delete(t.Context(), w.Name().folder()+"backup_manifest"); err != nil {
				t.Fatal(err)
			}
		},
		"bytes, want": func(_ *BackupWriter, _ *mem.Store, _ *Sentinel, f *BackupFacts) { f.Parts[1].Size++ },
		"is none of its parts": func(w *BackupWriter, store *mem.Store, _ *Sentinel, _ *BackupFacts) {
			put(t, store, w.Name().folder()+"tar_partitions/stray.tar", nil)
		},
		"is named twice": func(_ *BackupWriter, _ *mem.Store, _ *Sentinel, f *BackupFacts) {
			f.Parts = append(f.Parts, f.Parts[0])
		},
		"it names no parts":                 func(_ *BackupWriter, _ *mem.Store, _ *Sentinel, f *BackupFacts) { f.Parts = nil },
		"the manifest is called":            func(_ *BackupWriter, _ *mem.Store, _ *Sentinel, f *BackupFacts) { f.Manifest = BackupPart{} },
		"WAL is":                            func(_ *BackupWriter, _ *mem.Store, _ *Sentinel, f *BackupFacts) { f.WAL = "" },
		"stop: invalid LSN":                 func(_ *BackupWriter, _ *mem.Store, _ *Sentinel, f *BackupFacts) { f.StopLSN = "" },
		"start: no timeline":                func(_ *BackupWriter, _ *mem.Store, _ *Sentinel, f *BackupFacts) { f.StartTimeline = 0 },
		"invalid WAL segment size":          func(_ *BackupWriter, _ *mem.Store, _ *Sentinel, f *BackupFacts) { f.SegmentSize = 0 },
		"is not in segment":                 func(_ *BackupWriter, _ *mem.Store, _ *Sentinel, f *BackupFacts) { f.SegmentSize = 64 << 20 },
		"the sentinel 0/C000028 to 0/B":     func(_ *BackupWriter, _ *mem.Store, s *Sentinel, _ *BackupFacts) { s.FinishLSN = 11 },
		"it stops at 0/B, before its start": func(_ *BackupWriter, _ *mem.Store, s *Sentinel, f *BackupFacts) { s.FinishLSN = 11; f.StopLSN = "0/B" },
		"it started at 0/C000028, not at 0/C000030": func(_ *BackupWriter, _ *mem.Store, s *Sentinel, f *BackupFacts) {
			s.LSN, f.StartLSN = 0xC000030, "0/C000030"
		},
		"does not say of which system": func(_ *BackupWriter, _ *mem.Store, s *Sentinel, _ *BackupFacts) { s.SystemIdentifier = 0 },
		"or when it was taken":         func(_ *BackupWriter, _ *mem.Store, s *Sentinel, _ *BackupFacts) { s.FinishTime = time.Time{} },
		"another cluster": func(_ *BackupWriter, store *mem.Store, _ *Sentinel, _ *BackupFacts) {
			put(t, store, identityKey, mustIdentity(t, Identity{testSystem, m16, "lz4"}))
		},
		"invalid identity": func(_ *BackupWriter, store *mem.Store, _ *Sentinel, _ *BackupFacts) {
			put(t, store, identityKey, []byte("{"))
		},
	} {
		store := mem.New()
		a := New(store, Options{})
		w, err := a.NewBackup(t.Context(), startOf, m16)
		if err != nil {
			t.Fatal(err)
		}
		if err := write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		s, f := exampleSentinel(), factsOf(contents())
		change(w, store, &s, &f)
		if _, err := w.Commit(t.Context(), s, f); err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), w.Name().String()) {
			t.Errorf("%v, want %q", err, what)
		}
		for _, key := range keysOf(t, store) {
			if strings.HasSuffix(key, sentinelSuffix) || strings.HasSuffix(key, "/walferry.json") {
				t.Errorf("%s: %s was stored", what, key)
			}
		}
	}

	// Of the cluster that claimed it meanwhile it is right.
	store := mem.New()
	a := New(store, Options{})
	w, err := a.NewBackup(t.Context(), startOf, m16)
	if err == nil {
		err = write(t.Context(), w)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := exampleSentinel()
	if _, err := a.Claim(t.Context(), Identity{SystemIdentifier: s.SystemIdentifier, SegmentSize: m16}); err != nil {
		t.Errorf("an archive that holds an attempt at a backup alone: %v", err)
	}
	// Times are cut to what is stored of them; a second call changes nothing.
	s.StartTime = s.StartTime.Add(999).In(time.FixedZone("", 3600))
	for range 2 {
		b, err := w.Commit(t.Context(), s, factsOf(contents()))
		if err != nil || !b.Sentinel.StartTime.Equal(exampleSentinel().StartTime) {
			t.Errorf("%+v, %v", b, err)
		}
	}
	// Another content under the same name is a conflict.
	s.Hostname = "another"
	if _, err := w.Commit(t.Context(), s, factsOf(contents())); !errors.Is(err, ErrConflict) {
		t.Errorf("%v, want a conflict", err)
	}
}

func TestBackupWriterRefuses(t *testing.T) {
	store := mem.New()
	w, err := New(store, Options{}).NewBackup(t.Context(), startOf, m16)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "walferry.json", "metadata.json", "attempt.json", "tar_partitions/", "tar_partitions/a/b", "tar_partitions/..", "../x", "other"} {
		if err := w.Put(t.Context(), name, objstore.Bytes(nil)); err == nil {
			t.Errorf("%q was stored", name)
		}
	}
	for _, name := range []string{"", "a/b", "..", "a\n"} {
		if _, err := w.BeginPart(t.Context(), name); err == nil {
			t.Errorf("the upload of %q was begun", name)
		}
	}
	if n := len(keysOf(t, store)); n != 1 || len(store.Uploads()) != 0 {
		t.Errorf("%d objects, %d uploads", n, len(store.Uploads()))
	}
	for content, want := range map[string]error{"first": nil, "other": ErrConflict, "longer": ErrConflict, "": ErrConflict} {
		if content == "first" {
			continue
		}
		for _, noCRC := range []bool{false, true} {
			store := mem.NewWith(mem.Options{NoCRC: noCRC})
			w, err := New(store, Options{}).NewBackup(t.Context(), startOf, m16)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := w.Put(t.Context(), "backup_manifest", objstore.Bytes([]byte("first"))); err != nil {
					t.Error(err)
				}
			}
			var conflict *ConflictError
			err = w.Put(t.Context(), "backup_manifest", objstore.Bytes([]byte(content)))
			if !errors.Is(err, want) || !errors.As(err, &conflict) || conflict.Key != w.Name().folder()+"backup_manifest" {
				t.Errorf("%q over another: %v", content, err)
			}
		}
	}
}

// An object that the store says it has and has not is no endless matter.
func TestPutSmallOfALyingStore(t *testing.T) {
	calls := 0
	store := mem.NewWith(mem.Options{Before: func(_ context.Context, op mem.Op, _ string) error {
		calls++
		if op == mem.PutIfAbsent {
			return objstore.ErrExists
		}
		return nil
	}})
	err := New(store, Options{}).putSmall(t.Context(), "a", objstore.Bytes(nil))
	if err == nil || !strings.Contains(err.Error(), "says that it exists, and that it does not") || calls != 6 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

// What attempts of ours left is nobody's archive; anything else beside it is.
func TestAttemptsAreNoArchive(t *testing.T) {
	for what, c := range map[string]struct {
		beside string
		ok     bool
	}{
		"nothing":             {"", true},
		"a part of WAL-G's":   {"basebackups_005/base_000000010000000000000002/tar_partitions/part_001.tar.lz4", false},
		"something else":      {"basebackups_005/notes.txt", false},
		"a folder":            {"basebackups_005/notes/x", false},
		"WAL nobody can read": {"wal_005/000000010000000000000002.lz4", false},
	} {
		store := mem.New()
		a := New(store, Options{})
		for range 2 {
			if _, err := a.NewBackup(t.Context(), startOf, m16); err != nil {
				t.Fatal(err)
			}
		}
		if c.beside != "" {
			put(t, store, c.beside, []byte("x"))
		}
		_, _, err := a.Recognise(t.Context())
		if c.ok != errors.Is(err, ErrUnrecognised) {
			t.Errorf("%s: recognised, %v", what, err)
		}
		_, err = a.Claim(t.Context(), Identity{SystemIdentifier: testSystem, SegmentSize: m16})
		if c.ok != (err == nil) || !c.ok && !errors.Is(err, ErrUnrecognised) {
			t.Errorf("%s: claim: %v", what, err)
		}
	}
	// Whether they are all there is must be answered.
	for fail := 1; ; fail++ {
		n := 0
		down := errors.New("503")
		store := mem.NewWith(mem.Options{Before: func(_ context.Context, op mem.Op, key string) error {
			if n >= 0 && (op == mem.List || op == mem.Get) {
				if n++; n == fail {
					return fmt.Errorf("%s %s: %w", op, key, down)
				}
			}
			return nil
		}})
		a := New(store, Options{})
		n = -1
		if _, err := a.NewBackup(t.Context(), startOf, m16); err != nil {
			t.Fatal(err)
		}
		n = 0
		_, _, err := a.Recognise(t.Context())
		if n < fail {
			if !errors.Is(err, ErrUnrecognised) || n < 6 {
				t.Errorf("%d calls: %v", n, err)
			}
			break
		}
		if !errors.Is(err, down) || errors.Is(err, ErrUnrecognised) {
			t.Errorf("call %d failed: %v", fail, err)
		}
	}
}
