package basebackup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

// reaching is an archive whose WAL grows with time.
type reaching struct {
	*archive.Archive
	at  func(since time.Duration) (segment.LSN, error)
	now time.Time
}

func (r reaching) ReachFrom(ctx context.Context, h segment.History, size segment.Size, from segment.LSN) (sealed, reach segment.Position, err error) {
	l, err := r.at(time.Since(r.now))
	if err == nil {
		err = ctx.Err()
	}
	p := segment.Position{Timeline: h.Timeline, LSN: l}
	return p, p, err
}

// slowly makes every message of the server take a while.
func slowly(d time.Duration) func(context.Context, int) error {
	return func(ctx context.Context, _ int) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// A backup whose WAL nobody ships ends within the wait, however long its copy
// would have taken.
func TestNoWAL(t *testing.T) {
	for _, wait := range []time.Duration{0, 7 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			store := mem.New()
			a := archive.New(store, archive.Options{})
			server := good()
			server.before = slowly(time.Hour)
			o := options(t, "server-lz4")
			o.WALWait = wait
			begun := time.Now()
			// What lies before the start proves nothing.
			_, err := take(t.Context(), scriptConn{server}, nil, reaching{a, func(time.Duration) (segment.LSN, error) { return testStart.LSN, nil }, begun}, o)
			var none *NoWALError
			if !errors.Is(err, ErrNoWAL) || !errors.As(err, &none) || none.Start != testStart || none.Reach.LSN != testStart.LSN || none.Wait != or(wait, 30*time.Second) {
				t.Errorf("%v", err)
			}
			if waited := time.Since(begun); waited != or(wait, 30*time.Second) {
				t.Errorf("it waited for %s", waited)
			}
			nothing(t, a, store)
		})
	}
}

// A real archive that holds nothing of this timeline.
func TestNoWALInArchive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := mem.New()
		a := archive.New(store, archive.Options{})
		server := good()
		server.start.Timeline, server.start.LSN, server.stop.Timeline, server.stop.LSN = 3, testStart.LSN, 3, testStop.LSN
		_, err := take(t.Context(), scriptConn{server}, nil, a, options(t, "server-lz4"))
		if !errors.Is(err, ErrNoWAL) {
			t.Errorf("%v", err)
		}
		nothing(t, a, store)
	})
}

// The backup waits until its WAL is there, says so, and no longer.
func TestAwaitWAL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := archive.New(mem.New(), archive.Options{})
		log := testLog(t)
		o := options(t, "server-lz4")
		o.Log = slog.New(slog.NewTextHandler(log, nil))
		begun := time.Now()
		arrives := reaching{a, func(since time.Duration) (segment.LSN, error) {
			switch {
			case since < 29*time.Second:
				return testSize.Start(testStart.LSN), nil
			case since < 65*time.Second:
				return testStop.LSN - 1, nil
			}
			return testStop.LSN, nil
		}, begun}
		b, err := take(t.Context(), scriptConn{good()}, nil, arrives, o)
		if err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(begun); waited != 65*time.Second {
			t.Errorf("it waited for %s", waited)
		}
		if n := strings.Count(log.String(), "waits for its WAL"); n != 6 || !strings.Contains(log.String(), "reach=\"0/5000FF on timeline 1\" stop=\"0/500100 on timeline 1\"") {
			t.Errorf("it was told %d times:\n%s", n, log)
		}
		read(t, a, b.Name)
		if late := b.Sentinel.FinishTime.Sub(begun); late > time.Second {
			t.Errorf("the wait counts to the backup: it ended after %s", late)
		}
	})
}

// It waits as long as it is let.
func TestAwaitWALCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := mem.New()
		a := archive.New(store, archive.Options{})
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Hour)
		defer cancel()
		_, err := take(ctx, scriptConn{good()}, nil, reaching{a, func(time.Duration) (segment.LSN, error) { return testStop.LSN - 8, nil }, time.Now()}, options(t, "server-lz4"))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		nothing(t, a, store)
	})
}

// A store that does not answer says nothing about the WAL: it is asked again,
// and its silence does not count.
func TestAwaitWALStoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := archive.New(mem.New(), archive.Options{})
		begun := time.Now()
		b, err := take(t.Context(), scriptConn{good()}, nil, reaching{a, func(since time.Duration) (segment.LSN, error) {
			if since < 5*time.Minute {
				return 0, errStore
			}
			return testStop.LSN, nil
		}, begun}, options(t, "server-lz4"))
		if err != nil {
			t.Fatal(err)
		}
		read(t, a, b.Name)

		store := mem.New()
		a = archive.New(store, archive.Options{})
		begun = time.Now()
		_, err = take(t.Context(), scriptConn{good()}, nil, reaching{a, func(time.Duration) (segment.LSN, error) { return 0, errStore }, begun}, options(t, "server-lz4"))
		if waited := time.Since(begun); !errors.Is(err, errStore) || waited < storePatience || waited > storePatience+time.Minute {
			t.Errorf("after %s: %v", waited, err)
		}
		nothing(t, a, store)
		_, err = take(t.Context(), scriptConn{good()}, nil, reaching{a, func(time.Duration) (segment.LSN, error) { return 0, objstore.ErrDenied }, begun}, options(t, "server-lz4"))
		if !errors.Is(err, objstore.ErrDenied) {
			t.Errorf("%v", err)
		}
	})
}

// walScript is a server that sends WAL: that from the slot's segment on, when
// the test says so.
type walScript struct {
	system  uint64
	history []byte
	refuse  map[string]error // by command
	batches chan *replication.Batch

	mu       sync.Mutex
	did      []string
	statuses []replication.Status
	closed   bool
	err      error // of the stream
	sendErr  error
}

func newWALScript() *walScript { return &walScript{batches: make(chan *replication.Batch, 1000)} }

func (w *walScript) do(what string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.did = append(w.did, what)
	name, _, _ := strings.Cut(what, " ")
	return w.refuse[name]
}

func (w *walScript) IdentifySystem(context.Context) (replication.System, error) {
	return replication.System{SystemIdentifier: or(w.system, testSystem)}, w.do("identify")
}
func (w *walScript) PID() uint32 { return 4711 }
func (w *walScript) CreateTemporarySlot(_ context.Context, name string) error {
	return w.do("slot " + name)
}

func (w *walScript) TimelineHistory(_ context.Context, t segment.Timeline) ([]byte, error) {
	return w.history, w.do(fmt.Sprintf("history %d", t))
}

func (w *walScript) StartReplication(_ context.Context, slot string, from segment.Position) (walStream, error) {
	if err := w.do(fmt.Sprintf("start %s %s", slot, from)); err != nil {
		return nil, err
	}
	return walStreamScript{w}, nil
}

func (w *walScript) Close(context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	return nil
}

type walStreamScript struct{ *walScript }

func (w walStreamScript) Batches() <-chan *replication.Batch { return w.batches }
func (w walStreamScript) Err() error                         { return w.err }
func (w walStreamScript) Close() error                       { return w.walScript.Close(context.Background()) }

func (w walStreamScript) SendStatus(s replication.Status) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.statuses = append(w.statuses, s)
	return w.sendErr
}

// send sends WAL [from, to) in messages of at most n bytes.
func (w *walScript) send(wal []byte, from, to segment.LSN, n int) {
	for from < to {
		end := min(to, from+segment.LSN(n))
		w.batches <- &replication.Batch{Messages: []replication.Message{{Kind: replication.WALData, Start: from, Data: bytes.Clone(wal[from:end])}}}
		from = end
	}
}

func (w *walScript) again(context.Context) (walServer, error) { return w, nil }

// testWAL is WAL from LSN zero on.
func testWAL() []byte { return pages(0x700000, 77) }

// including are options with WAL.
func including(t *testing.T, text string) Options {
	o := options(t, text)
	o.IncludeWAL = true
	o.Again = func(context.Context) (*replication.Conn, error) { return nil, errors.New("not asked") }
	return o
}

// The WAL part holds every segment from the start's to the stop's, whole, with
// the marks that they need not be archived.
func TestIncludeWAL(t *testing.T) {
	wal := testWAL()
	for _, c := range []struct {
		text     string
		timeline segment.Timeline
		stop     segment.LSN
		upTo     segment.LSN // of what the server has sent
		piece    int
		segments int
	}{
		{"server-lz4", 1, 0x500100, 0x500100, 128 << 10, 3},
		{"server-lz4", 1, 0x500100, 0x5F0000, 8192, 3},
		{"client-zstd", 1, 0x500000, 0x500000, 100_001, 2}, // at a boundary: no further segment
		{"none", 1, 0x300100, 0x300100, 1 << 20, 1},
		{"server-lz4", 1, 0x300100, 0x680000, 1<<20 - 1, 4}, // further than it had to be
		{"server-zstd", 7, 0x500100, 0x500100, 128 << 10, 3},
	} {
		t.Run(fmt.Sprintf("%s %s %d", c.text, c.stop, c.timeline), func(t *testing.T) {
			w := newWALScript()
			w.history = []byte("6\t0/200000\tno recovery target specified\n")
			w.send(wal, 0x300000, c.upTo, c.piece)
			server := good()
			server.start = segment.Position{Timeline: c.timeline, LSN: testStart.LSN}
			server.stop = segment.Position{Timeline: c.timeline, LSN: c.stop}
			// All of it is sent before the stop is known.
			server.before = func(ctx context.Context, n int) error {
				for n == len(server.messages) && len(w.batches) > 0 && ctx.Err() == nil {
					time.Sleep(time.Millisecond)
				}
				return nil
			}
			a := archive.New(mem.New(), archive.Options{})
			b, err := take(t.Context(), scriptConn{server}, w.again, noWAL{a, t}, including(t, c.text))
			if err != nil {
				t.Fatal(err)
			}
			s := read(t, a, b.Name)
			s.check(t, server)
			if s.backup.Facts.WAL != archive.WALIncluded {
				t.Errorf("%+v", s.backup.Facts)
			}
			var names []string
			files := 0
			for name, h := range s.entries {
				if strings.HasPrefix(s.parts[name], "part_wal.tar") {
					names = append(names, name)
					files++
					if h.Mode != 0o600 || h.Uname != "postgres" {
						t.Errorf("%s: %+v", name, h)
					}
				}
			}
			slices.Sort(names)
			var want []string
			add := func(name string) { want = append(want, walPath(name), donePath(name)) }
			for i := range c.segments {
				n := testSize.Name(c.timeline, segment.LSN(0x300000+i*int(testSize)))
				add(n.String())
				content := wal[n.Start(testSize):n.End(testSize)]
				if end := n.End(testSize); end > c.upTo {
					content = append(bytes.Clone(content[:c.upTo-n.Start(testSize)]), make([]byte, end-c.upTo)...)
				}
				if !bytes.Equal(s.content[walPath(n.String())], content) {
					t.Errorf("%s holds something else", n)
				}
			}
			if c.timeline > 1 {
				add("00000007.history")
				if got := s.content["pg_wal/00000007.history"]; !bytes.Equal(got, w.history) {
					t.Errorf("the history is %q", got)
				}
			}
			if slices.Sort(want); !slices.Equal(names, want) {
				t.Errorf("there are %q, want %q", names, want)
			}
			last := s.backup.Facts.Parts[len(s.backup.Facts.Parts)-1]
			if !strings.HasPrefix(last.Name, "part_wal.tar") || last.Files != files {
				t.Errorf("%+v of %d files", last, files)
			}
			did := []string{"identify", "slot walferry_backup_4711"}
			if c.timeline > 1 {
				did = append(did, "history 7")
			}
			did = append(did, fmt.Sprintf("start walferry_backup_4711 0/300000 on timeline %d", c.timeline))
			if !slices.Equal(w.did, did) || !w.closed {
				t.Errorf("it did %q, closed %v", w.did, w.closed)
			}
			for _, st := range w.statuses {
				if st.Flush != 0 || st.Apply != 0 {
					t.Errorf("it reported %+v", st)
				}
			}
		})
	}
}

// noWAL is an archive that nobody asks for WAL.
type noWAL struct {
	*archive.Archive
	t *testing.T
}

func (n noWAL) ReachFrom(context.Context, segment.History, segment.Size, segment.LSN) (sealed, reach segment.Position, err error) {
	n.t.Error("the archive is asked for WAL")
	return
}

// The slot comes before the backup; the stop may be known long before the last
// of its WAL comes; the server hears from us all the while, also when the store
// takes nothing.
func TestIncludeWALSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wal := testWAL()
		w := newWALScript()
		server := good()
		var stuck atomic.Bool
		stuck.Store(true)
		store := mem.NewWith(mem.Options{Before: func(ctx context.Context, op mem.Op, key string) error {
			if op == mem.UploadPart || op == mem.PutIfAbsent && strings.Contains(key, "part_00") {
				for stuck.Load() && ctx.Err() == nil {
					time.Sleep(time.Second)
				}
			}
			return ctx.Err()
		}})
		a := archive.New(store, archive.Options{})
		done := make(chan error, 1)
		go func() {
			b, err := take(t.Context(), scriptConn{server}, w.again, noWAL{a, t}, including(t, "none"))
			if err == nil {
				read(t, a, b.Name).check(t, server)
			}
			done <- err
		}()
		w.send(wal, 0x300000, 0x400000, 128<<10)
		synctest.Wait()
		time.Sleep(65 * time.Second)
		w.mu.Lock()
		if n := len(w.statuses); n != 6 || w.statuses[n-1].Write != 0x400000 || w.statuses[n-1].Flush != 0 {
			t.Errorf("within 65 s it reported %+v", w.statuses)
		}
		w.statuses = nil
		w.mu.Unlock()
		// Asked, it answers at once.
		w.batches <- &replication.Batch{Messages: []replication.Message{{Kind: replication.Keepalive, ReplyRequested: true}, {Kind: replication.Keepalive}}}
		synctest.Wait()
		w.mu.Lock()
		if n := len(w.statuses); n != 1 || w.statuses[0].Write != 0x400000 {
			t.Errorf("asked, it reported %+v", w.statuses)
		}
		w.mu.Unlock()
		stuck.Store(false)
		time.Sleep(time.Minute)
		select {
		case err := <-done:
			t.Fatalf("it ended without its WAL: %v", err)
		default:
		}
		w.send(wal, 0x400000, 0x500100, 128<<10)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// Whatever goes wrong with the WAL, there is no backup.
func TestIncludeWALFails(t *testing.T) {
	wal := testWAL()
	broken := errors.New("connection reset")
	said := &replication.ServerError{Severity: "ERROR", SQLSTATE: "53400", Message: "all replication slots are in use"}
	for what, c := range map[string]struct {
		change func(*walScript, *script)
		want   error
		says   string
	}{
		"no slot":        {func(w *walScript, _ *script) { w.refuse = map[string]error{"slot": said} }, said, "second connection"},
		"no answer":      {func(w *walScript, _ *script) { w.refuse = map[string]error{"identify": broken} }, broken, "second connection"},
		"another system": {func(w *walScript, _ *script) { w.system = 5 }, ErrForeignCluster, "system identifier 5"},
		"no stream":      {func(w *walScript, _ *script) { w.refuse = map[string]error{"start": said} }, said, ""},
		"no history": {func(w *walScript, s *script) {
			w.refuse = map[string]error{"history": replication.ErrNoHistory}
			s.start.Timeline, s.start.LSN = 2, testStart.LSN
			s.stop.Timeline, s.stop.LSN = 2, testStop.LSN
		}, replication.ErrNoHistory, ""},
		"the stream breaks": {func(w *walScript, _ *script) { w.err = broken; close(w.batches) }, broken, "0/300000"},
		"the stream ends":   {func(w *walScript, _ *script) { close(w.batches) }, replication.ErrClosed, "0/300000"},
		"a hole": {func(w *walScript, _ *script) {
			w.send(wal, 0x300000, 0x310000, 8192)
			w.send(wal, 0x310008, 0x320000, 8192)
		}, replication.ErrProtocol, "0/310008"},
		"the timeline ends": {func(w *walScript, _ *script) {
			w.batches <- &replication.Batch{Messages: []replication.Message{{Kind: replication.CopyDone}}}
		}, nil, "another timeline"},
		"a stop on another timeline": {func(w *walScript, s *script) {
			w.send(wal, 0x300000, 0x600000, 128<<10)
			s.start, s.stop = testStart, segment.Position{Timeline: 2, LSN: testStop.LSN}
		}, nil, "several timelines"},
		"no status": {func(w *walScript, s *script) {
			w.sendErr = broken
			s.before = slowly(time.Minute)
		}, broken, ""},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, server := newWALScript(), good()
				c.change(w, server)
				store := mem.New()
				a := archive.New(store, archive.Options{})
				_, err := take(t.Context(), scriptConn{server}, w.again, noWAL{a, t}, including(t, "server-lz4"))
				if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%v; want %v that says %q", err, c.want, c.says)
				}
				nothing(t, a, store)
				if !w.closed || !server.closed {
					t.Errorf("connections are open: %v, %v", !w.closed, !server.closed)
				}
			})
		})
	}
	t.Run("no connection", func(t *testing.T) {
		server := good()
		store := mem.New()
		a := archive.New(store, archive.Options{})
		_, err := take(t.Context(), scriptConn{server}, func(context.Context) (walServer, error) { return nil, broken }, noWAL{a, t}, including(t, "server-lz4"))
		if !errors.Is(err, broken) || len(server.asked) > 0 {
			t.Errorf("%v; asked for %+v", err, server.asked)
		}
		nothing(t, a, store)
	})
}

// The copy fails: the WAL's part and its connection end, too.
func TestIncludeWALCopyFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, server := newWALScript(), good()
		server.alterTar = inBase(func(b []byte) []byte { return b[:len(b)-1024] })
		server.before = slowly(time.Second)
		store := mem.New()
		a := archive.New(store, archive.Options{})
		_, err := take(t.Context(), scriptConn{server}, w.again, noWAL{a, t}, including(t, "server-lz4"))
		if !errors.Is(err, errTar) || !w.closed {
			t.Errorf("%v, closed %v", err, w.closed)
		}
		nothing(t, a, store)
	})
}
