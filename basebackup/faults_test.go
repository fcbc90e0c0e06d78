package basebackup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/replication"
)

// large is a server whose data directory needs several parts of a store that
// takes few.
func large() *script {
	server := good()
	base := &server.spaces[1]
	for i := range 2 {
		base.files = append(base.files, file{name: fmt.Sprintf("base/5/%d", i), content: pages(9<<20, byte(20+i))})
	}
	return server
}

// picked says which steps of a sweep are taken: all of them in a full run, else
// every fifteenth from a random one on. Each moves some 30 MB, which the race
// detector looks at byte by byte.
func picked(t *testing.T) func(n int) bool {
	t.Helper()
	if os.Getenv("WALFERRY_FULL") != "" {
		return func(int) bool { return true }
	}
	const stride = 15
	first := rand.IntN(stride)
	t.Logf("of %d steps each, number %d is taken (all with WALFERRY_FULL=1)", stride, first)
	return func(n int) bool { return n%stride == first }
}

var errStore = errors.New("the store is away")

// calls counts a store's calls, those that change something by themselves.
type calls struct{ all, changes atomic.Int64 }

func (c *calls) count(op mem.Op) (n, change int64) {
	n = c.all.Add(1)
	switch op {
	case mem.Put, mem.PutIfAbsent, mem.BeginUpload, mem.UploadPart, mem.CompleteUpload, mem.Delete:
		return n, c.changes.Add(1)
	}
	return n, 0
}

// storeOf makes a store whose calls are counted and pass through fail, before
// they do anything or after it.
func storeOf(before, after func(n int64, op mem.Op, key string) error) (*mem.Store, *calls) {
	c := &calls{}
	number := func(f func(int64, mem.Op, string) error, count bool) func(context.Context, mem.Op, string) error {
		return func(_ context.Context, op mem.Op, key string) error {
			n := c.all.Load()
			if count {
				n, _ = c.count(op)
			}
			if f == nil {
				return nil
			}
			return f(n, op, key)
		}
	}
	return mem.NewWith(mem.Options{Before: number(before, true), After: number(after, false)}), c
}

// takeFrom takes one backup from a large server, whose content is made once.
func takeFrom(ctx context.Context, t *testing.T, store objstore.Store, server *script) (archive.Backup, error) {
	t.Helper()
	return take(ctx, scriptConn{server}, nil, arrived{archive.New(store, archive.Options{})}, options(t, "none"))
}

// Each call of the store fails once, before it did anything or after it (an
// answer that was lost): nobody notices.
func TestStoreFailsOnce(t *testing.T) {
	pick := picked(t)
	server := large()
	probe, c := storeOf(nil, nil)
	if _, err := takeFrom(t.Context(), t, probe, fresh(server)); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"before", "after"} {
		for n := int64(1); n <= c.all.Load(); n++ {
			if !pick(int(n)) {
				continue
			}
			t.Run(fmt.Sprintf("%s %d", when, n), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var failed atomic.Bool
					var op mem.Op
					fail := func(i int64, o mem.Op, _ string) error {
						if i >= n && !failed.Swap(true) {
							op = o
							return errStore
						}
						return nil
					}
					var store *mem.Store
					if when == "before" {
						store, _ = storeOf(fail, nil)
					} else {
						store, _ = storeOf(nil, fail)
					}
					server := fresh(server)
					b, err := takeFrom(t.Context(), t, store, server)
					a := archive.New(store, archive.Options{})
					if err != nil {
						// Before anything began nobody has patience.
						if len(server.asked) > 0 || op == mem.Delete {
							t.Fatalf("%s failed once: %v", op, err)
						}
						nothing(t, a, store)
						return
					}
					read(t, a, b.Name).check(t, server)
					// An upload whose answer was lost is one that nobody knows.
					if up := store.Uploads(); len(up) > 1 || len(up) == 1 && op != mem.BeginUpload {
						t.Errorf("%s failed once: uploads are under way: %q", op, up)
					}
				})
			})
		}
	}
}

// fresh is the server again, as it was before its backup.
func fresh(s *script) *script {
	return &script{spaces: s.spaces, standby: s.standby, local: s.local}
}

// From some call on every one fails: for good, or until patience ends.
func TestStoreFails(t *testing.T) {
	pick := picked(t)
	server := large()
	probe, c := storeOf(nil, nil)
	if _, err := takeFrom(t.Context(), t, probe, fresh(server)); err != nil {
		t.Fatal(err)
	}
	for _, cause := range []error{objstore.ErrDenied, objstore.ErrNoStore, errStore} {
		for n := int64(1); n <= c.all.Load(); n++ {
			if !pick(int(n)) {
				continue
			}
			t.Run(fmt.Sprintf("%v %d", cause, n), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var dead atomic.Bool
					store, _ := storeOf(func(i int64, op mem.Op, _ string) error {
						if i >= n && op != mem.AbortUpload && !dead.Load() {
							return cause
						}
						return nil
					}, nil)
					log := testLog(t)
					o := options(t, "none")
					o.Log = slog.New(slog.NewTextHandler(log, nil))
					begun := time.Now()
					a := archive.New(store, archive.Options{})
					_, err := take(t.Context(), scriptConn{fresh(server)}, nil, arrived{a}, o)
					if !errors.Is(err, cause) {
						t.Errorf("%v; want %v", err, cause)
					}
					if waited := time.Since(begun); errors.Is(cause, errStore) != (waited >= storePatience) && strings.Contains(log.String(), "begins") {
						t.Errorf("it gave up after %s", waited)
					}
					if strings.Contains(log.String(), "begins") && !strings.Contains(log.String(), "was given up") {
						t.Errorf("the log does not name what was left:\n%s", log)
					}
					dead.Store(true)
					nothing(t, a, store)
				})
			})
		}
	}
}

// The same while blocks are encoded, beside a checker and beside the receiver
// itself.
func TestStoreFailsWhileEncoding(t *testing.T) {
	pick := picked(t)
	server := large()
	base := &server.spaces[1]
	base.files = append(base.files, file{name: "base/5/2", content: pages(9<<20, 30)}) // another part, encoded
	for _, server.local = range []bool{false, true} {
		probe, c := storeOf(nil, nil)
		if _, err := take(t.Context(), scriptConn{fresh(server)}, nil, arrived{archive.New(probe, archive.Options{})}, options(t, "client-lz4")); err != nil {
			t.Fatal(err)
		}
		for n := int64(1); n <= c.all.Load(); n++ {
			if !pick(int(n)) {
				continue
			}
			t.Run(fmt.Sprintf("%v %d", server.local, n), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var dead atomic.Bool
					store, _ := storeOf(func(i int64, op mem.Op, _ string) error {
						if i >= n && op != mem.AbortUpload && !dead.Load() {
							return objstore.ErrDenied
						}
						return nil
					}, nil)
					a := archive.New(store, archive.Options{})
					if _, err := take(t.Context(), scriptConn{fresh(server)}, nil, arrived{a}, options(t, "client-lz4")); !errors.Is(err, objstore.ErrDenied) {
						t.Errorf("%v; want %v", err, objstore.ErrDenied)
					}
					nobodyEncodes(t)
					dead.Store(true)
					nothing(t, a, store)
				})
			})
		}
	}
}

// The process dies at each change of the store: nothing that a list shows is
// left, or the whole backup; the next backup is not hindered. This is the crash
// table of the package documentation.
func TestCrash(t *testing.T) {
	pick := picked(t)
	server := large()
	probe, c := storeOf(nil, nil)
	if _, err := takeFrom(t.Context(), t, probe, fresh(server)); err != nil {
		t.Fatal(err)
	}
	type death struct{}
	for _, when := range []string{"before", "after"} {
		for n := int64(1); n <= c.changes.Load(); n++ {
			if !pick(int(n)) {
				continue
			}
			t.Run(fmt.Sprintf("%s %d", when, n), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					// A dead process calls nothing any more, not even an abort.
					var changes atomic.Int64
					var crashed, reborn atomic.Bool
					ctx, cancel := context.WithCancelCause(t.Context())
					defer cancel(nil)
					var at string // where it died
					die := func(op mem.Op, key string, before bool) error {
						if reborn.Load() {
							return nil
						}
						if crashed.Load() {
							return context.Canceled
						}
						switch op {
						case mem.Put, mem.PutIfAbsent, mem.BeginUpload, mem.UploadPart, mem.CompleteUpload:
						default:
							return nil
						}
						if before != (when == "before") || changes.Add(1) != n {
							return nil
						}
						at = key
						crashed.Store(true)
						cancel(fmt.Errorf("died: %v", death{}))
						return context.Canceled
					}
					store := mem.NewWith(mem.Options{
						Before: func(_ context.Context, op mem.Op, key string) error { return die(op, key, true) },
						After:  func(_ context.Context, op mem.Op, key string) error { return die(op, key, false) },
					})
					_, err := takeFrom(ctx, t, store, fresh(server))
					if !crashed.Load() {
						t.Skipf("there are fewer calls this time: %v", err)
					}
					reborn.Store(true)
					a := archive.New(store, archive.Options{})
					all, err := a.Backups(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if exists := when == "after" && strings.HasSuffix(at, "_backup_stop_sentinel.json"); len(all) > 0 != exists {
						t.Errorf("it died %s %s, and %d backups are listed", when, at, len(all))
					}
					for _, b := range all {
						read(t, a, b.Name).check(t, server)
					}
					next := fresh(server)
					b, err := takeFrom(t.Context(), t, store, next)
					if err != nil {
						t.Fatalf("the next one: %v", err)
					}
					read(t, a, b.Name).check(t, next)
				})
			})
		}
	}
}

// The server's connection breaks at every message, or the caller has enough.
func TestServerFails(t *testing.T) {
	pick := picked(t)
	probe := good()
	probe.piece = 100_000
	if _, err := takeFrom(t.Context(), t, mem.New(), probe); err != nil {
		t.Fatal(err)
	}
	promoted := &replication.ServerError{Severity: "ERROR", SQLSTATE: "55000", Message: "the standby was promoted during online backup"}
	for n := range probe.sent {
		if !pick(n) {
			continue
		}
		for _, text := range []string{"server-lz4", "client-lz4", "client-lz4:9"} {
			local := text == "client-lz4:9" // the receiver encodes, and each block takes long
			server := good()
			server.piece, server.local = 100_000, local
			server.before = func(_ context.Context, i int) error {
				if i == n {
					return fmt.Errorf("base backup: %w", promoted)
				}
				return nil
			}
			store := mem.New()
			a := archive.New(store, archive.Options{})
			_, err := take(t.Context(), scriptConn{server}, nil, arrived{a}, options(t, text))
			if server.sent <= n {
				continue // fewer messages
			}
			var said *replication.ServerError
			if !errors.As(err, &said) {
				t.Errorf("%s, message %d: %v", text, n, err)
			}
			nobodyEncodes(t)
			nothing(t, a, store)

			ctx, cancel := context.WithCancel(t.Context())
			server = good()
			server.piece, server.local = 100_000, local
			server.before = func(_ context.Context, i int) error {
				if i == n {
					cancel()
				}
				return nil
			}
			_, err = take(ctx, scriptConn{server}, nil, arrived{a}, options(t, text))
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s, cancelled at message %d: %v", text, n, err)
			}
			nobodyEncodes(t)
			nothing(t, a, store)
			cancel()
		}
	}
}

// nobodyEncodes makes sure that no block is encoded or written any more, to an
// object whose memory was freed. (The goroutine may be at its very end.)
func nobodyEncodes(t *testing.T) {
	t.Helper()
	all := make([]byte, 1<<20)
	all = all[:runtime.Stack(all, true)]
	if bytes.Contains(all, []byte("codec.(*blockEncoder).")) {
		t.Errorf("the backup has ended, and blocks are encoded:\n%s", all)
	}
}

// Parts that cannot be stored do not pile up: reception waits, and nothing is
// lost.
func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		released := make(chan struct{})
		var waiting atomic.Int64
		store := mem.NewWith(mem.Options{Before: func(ctx context.Context, op mem.Op, _ string) error {
			if op != mem.UploadPart {
				return nil
			}
			waiting.Add(1)
			defer waiting.Add(-1)
			select {
			case <-released:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}})
		server := &script{spaces: []space{{files: []file{{name: "base/5/1", content: make([]byte, 100<<20)}}}}}
		var received atomic.Int64
		server.before = func(_ context.Context, n int) error {
			if n < len(server.messages) {
				received.Add(int64(len(server.messages[n].Data)))
			}
			return nil
		}
		done := make(chan error, 1)
		go func() {
			_, err := takeFrom(t.Context(), t, store, server)
			done <- err
		}()
		synctest.Wait()
		if got := received.Load(); got > slots*smallestPart+64<<10 || got < slots*smallestPart {
			t.Errorf("%d bytes were taken while nothing could be stored", got)
		}
		if n := waiting.Load(); n != slots {
			t.Errorf("%d parts are stored at once", n)
		}
		close(released)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// A store that takes few parts gets larger ones, through a file where they are
// larger than memory allows.
func TestFewParts(t *testing.T) {
	server := large()
	for _, parts := range []int{2, 3} {
		store := mem.New()
		var most atomic.Int64
		a := archive.New(counting{store, &most}, archive.Options{})
		o := options(t, "none")
		o.MaxParts, o.MemoryPart = parts, 8<<20
		s := fresh(server)
		s.unsized = true
		b, err := take(t.Context(), scriptConn{s}, nil, arrived{a}, o)
		if err != nil {
			t.Fatal(err)
		}
		read(t, a, b.Name).check(t, s)
		if n := most.Load(); n > int64(parts) || n < 2 {
			t.Errorf("%d parts of at most %d", n, parts)
		}
	}
}

// counting notes the highest number of a part.
type counting struct {
	*mem.Store
	most *atomic.Int64
}

func (c counting) BeginUpload(ctx context.Context, key string) (objstore.Upload, error) {
	u, err := c.Store.BeginUpload(ctx, key)
	return countingUpload{u, c.most}, err
}

type countingUpload struct {
	objstore.Upload
	most *atomic.Int64
}

func (u countingUpload) Part(ctx context.Context, n int, at int64, body objstore.Body) error {
	for m := u.most.Load(); int64(n) > m && !u.most.CompareAndSwap(m, int64(n)); m = u.most.Load() {
	}
	return u.Upload.Part(ctx, n, at, body)
}
