package receiver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
)

// copyData is a message of the stream as it is, whatever it says.
func copyData(body ...byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{'d'}, uint32(4+len(body))), body...)
}

// walAt is WAL at an LSN.
func walAt(at segment.LSN, data []byte) []byte {
	head := binary.BigEndian.AppendUint64([]byte{'w'}, uint64(at))
	return copyData(append(append(head, make([]byte, 16)...), data...)...)
}

// rubbish is what a server never sends: it ends the connection, or has to be
// borne. It is sent behind good WAL.
type rubbish struct {
	name string
	make func(r *rand.Rand, w *fakepg.Walsender) []byte
	cut  bool // the connection ends behind it
	mute bool // the server says nothing more, and does not close
	fine bool // odd, and no reason to end anything
}

func bytesOf(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

var allRubbish = []rubbish{
	{name: "unknown kind", make: func(r *rand.Rand, _ *fakepg.Walsender) []byte {
		for {
			if b := bytesOf(r, 1+r.IntN(100)); b[0] != 'w' && b[0] != 'k' {
				return copyData(b...)
			}
		}
	}},
	{name: "empty", make: func(*rand.Rand, *fakepg.Walsender) []byte { return copyData() }},
	{name: "short header of WAL", make: func(r *rand.Rand, _ *fakepg.Walsender) []byte {
		return copyData(append([]byte{'w'}, bytesOf(r, r.IntN(24))...)...)
	}},
	{name: "keepalive of a wrong size", make: func(r *rand.Rand, _ *fakepg.Walsender) []byte {
		n := r.IntN(16)
		if r.IntN(2) == 0 {
			n += 18
		}
		return copyData(append([]byte{'k'}, bytesOf(r, n)...)...)
	}},
	{name: "unknown message", make: func(r *rand.Rand, _ *fakepg.Walsender) []byte {
		kind := []byte("?BDFGHIKQRTVWXZdt1\x00\xff")[r.IntN(20)]
		return append([]byte{kind, 0, 0, 0, 9}, bytesOf(r, 5)...)
	}},
	{name: "length below four", make: func(r *rand.Rand, _ *fakepg.Walsender) []byte { return []byte{'d', 0, 0, 0, byte(r.IntN(4)), 'w'} }},
	{name: "length beyond all", make: func(r *rand.Rand, _ *fakepg.Walsender) []byte {
		return append([]byte{'d', 1 + byte(r.IntN(255))}, bytesOf(r, 50)...)
	}},
	{name: "more promised than sent", cut: true, make: func(r *rand.Rand, w *fakepg.Walsender) []byte {
		b := walAt(w.Sent, bytesOf(r, 1+r.IntN(5000)))
		return b[:1+r.IntN(len(b)-1)]
	}},
	{name: "more promised than sent, and silence", mute: true, make: func(r *rand.Rand, w *fakepg.Walsender) []byte {
		b := walAt(w.Sent, bytesOf(r, 1+r.IntN(5000)))
		return b[:1+r.IntN(len(b)-1)]
	}},
	{name: "WAL ahead", make: func(r *rand.Rand, w *fakepg.Walsender) []byte {
		return walAt(w.Sent+1+segment.LSN(r.Uint64N(1<<r.IntN(40))), bytesOf(r, r.IntN(9000)))
	}},
	{name: "WAL again", make: func(r *rand.Rand, w *fakepg.Walsender) []byte {
		n := 1 + segment.LSN(r.IntN(8000))
		return walAt(w.Sent-n, w.Server().WAL().Bytes(1, w.Sent-n, w.Sent))
	}},
	{name: "WAL that overlaps", make: func(r *rand.Rand, w *fakepg.Walsender) []byte {
		return walAt(w.Sent-1, bytesOf(r, 2+r.IntN(9000)))
	}},
	{name: "WAL beyond the last LSN", make: func(r *rand.Rand, _ *fakepg.Walsender) []byte {
		return walAt(1<<64-1-segment.LSN(r.IntN(50)), bytesOf(r, 51+r.IntN(9000)))
	}},
	{name: "no message at all", cut: true, make: func(r *rand.Rand, _ *fakepg.Walsender) []byte {
		for {
			// One that is a message, such as a notice, would have to be borne.
			if b := bytesOf(r, 6+r.IntN(3000)); !strings.ContainsRune("NSACEc", rune(b[0])) {
				return b
			}
		}
	}},
	{name: "an error that is none", make: func(r *rand.Rand, _ *fakepg.Walsender) []byte {
		return append([]byte{'E', 0, 0, 0, 24}, bytes.Repeat([]byte{'x'}, 20)...)
	}},
	{name: "an end without a next timeline", make: func(*rand.Rand, *fakepg.Walsender) []byte {
		return []byte{'c', 0, 0, 0, 4, 'Z', 0, 0, 0, 5, 'I'}
	}},
	{name: "no WAL in its right place", fine: true, make: func(r *rand.Rand, w *fakepg.Walsender) []byte { return walAt(w.Sent, nil) }},
	{name: "a notice", fine: true, make: func(r *rand.Rand, _ *fakepg.Walsender) []byte {
		b := bytesOf(r, r.IntN(200))
		return append(binary.BigEndian.AppendUint32([]byte{'N'}, uint32(4+len(b))), b...)
	}},
	{name: "an end of WAL that cannot be", fine: true, make: func(r *rand.Rand, _ *fakepg.Walsender) []byte {
		return copyData(append([]byte{'k', 255, 255, 255, 255, 255, 255, 255, byte(r.IntN(256))}, 0, 0, 0, 0, 0, 0, 0, 0, 1)...)
	}},
}

// TestGarbage sends garbage behind good WAL, again and again. Whatever it is,
// the receiver reports no more than it was sent in order, stores nothing else,
// says once that it has lost the server and once that it is back, and goes on.
func TestGarbage(t *testing.T) {
	first, seeds := uint64(0), 8
	if os.Getenv("WALFERRY_FULL") != "" {
		seeds = 100
	}
	if v := os.Getenv("WALFERRY_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, seeds = n, 1
	}
	for seed := first; seed < first+uint64(seeds); seed++ {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { garbage(t, seed) })
		})
	}
}

func garbage(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t, fakepg.Options{Seed: seed})
	if random.IntN(2) == 0 {
		w.srv.Set("synchronous_standby_names", "walferry") // every position is reported at once
	}
	w.srv.FillTo(mb + segment.LSN(random.IntN(int(2*mb))))
	w.start(0)
	time.Sleep(time.Second)
	for n := range 8 {
		g := allRubbish[(int(seed)*8+n)%len(allRubbish)] // all of them in a few seeds
		begun, over := w.told("cannot receive from the server; trying"), w.told("can receive from the server again")
		w.srv.Cut() // it is a while before it connects again
		held := w.srv.End()
		end := w.srv.FillTo(held + 1 + segment.LSN(random.IntN(700_000)))
		// Behind all that is held, so that the connection counts as one.
		to := end - segment.LSN(random.IntN(int(end-held)))
		w.srv.Script(func(ws *fakepg.Walsender) error {
			if err := ws.Send(to); err != nil {
				return err
			}
			if err := ws.Raw(g.make(random, ws)); err != nil || g.cut {
				return errors.Join(err, ws.Drop())
			}
			if g.fine {
				return ws.Stream()
			}
			for {
				s, err := ws.Status()
				if s.Write > to || s.Flush > to {
					t.Errorf("%s: write %s, flush %s; what was sent in order ends at %s", g.name, s.Write, s.Flush, to)
				}
				if err != nil {
					return err
				}
			}
		})
		lost := 1 // by the cut
		if !g.fine {
			lost++
		}
		patience := silence / 2 // garbage is not taken for silence
		if g.mute {
			patience = 2 * silence
		}
		time.Sleep(patience)
		settle()
		begun, over = w.told("cannot receive from the server; trying")-begun, w.told("can receive from the server again")-over
		if begun != lost || over != lost {
			t.Errorf("%s: told %d times that the server is lost and %d times that it is back, want %d", g.name, begun, over, lost)
		}
		if s := w.lastStatus(); s.Write != end {
			t.Errorf("%s: in the end write %s, the server is at %s", g.name, s.Write, end)
		}
		w.checkHeld()
		if t.Failed() {
			t.Fatalf("after %q", g.name)
		}
	}
	end := w.srv.FillTo(w.srv.End() + mb)
	time.Sleep(12 * time.Second)
	settle()
	if got := w.checkArchive(1); got != segment.MinSize.Start(end) {
		t.Errorf("the archive ends at %s, the server at %s", got, end)
	}
	w.checkStatuses()
	if n := w.told("still cannot"); n > 0 {
		t.Errorf("told %d times more that the server is lost", n)
	}
}

// told counts what the log says.
func (w *world) told(what string) int { return strings.Count(w.log.String(), what) }

// checkHeld holds what the spool counts as received against the server's bytes.
func (w *world) checkHeld() {
	w.t.Helper()
	for _, g := range w.sp.Segments() {
		b := make([]byte, g.Advanced()-g.Start())
		if err := g.ReadAt(b, g.Start()); err != nil {
			w.t.Error(err)
		}
		if !bytes.Equal(b, w.srv.WAL().Bytes(1, g.Start(), g.Advanced())) {
			w.t.Errorf("segment %s in the spool differs from the server's before %s", g.Name(), g.Advanced())
		}
	}
}

// headed gives bytes from an LSN on the page headers that belong there.
func headed(at segment.LSN, data []byte) []byte {
	le := binary.LittleEndian
	for page := (at + pageSize - 1) &^ (pageSize - 1); int(page-at)+24 <= len(data); page += pageSize {
		h := data[page-at:]
		clear(h[:24])
		le.PutUint16(h, 0xD110)
		le.PutUint32(h[4:], 1)
		le.PutUint64(h[8:], uint64(page))
	}
	return data
}

// TestPagesOfAnotherPlace: a standby that has replayed a segment switch sends
// what its file holds behind it, and that may be what a recycled file held
// before. Nothing of it is kept, and soon the server sends what belongs there.
func TestPagesOfAnotherPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fakepg.Options{})
		good := w.srv.FillTo(2*mb + 5*pageSize)
		good &^= pageSize - 1
		w.srv.Script(func(ws *fakepg.Walsender) error {
			stale := w.srv.WAL().Bytes(1, mb+5*pageSize, mb+13*pageSize)
			if err := errors.Join(ws.Send(good), ws.Raw(walAt(good, stale))); err != nil {
				return err
			}
			for {
				if _, err := ws.Status(); err != nil {
					return err
				}
			}
		})
		end, _ := w.start(0)
		time.Sleep(12 * time.Second)
		w.checkHeld()
		w.srv.FillTo(3*mb + 5000)
		time.Sleep(30 * time.Second)
		if n := w.told("nothing of it was kept: page at " + good.String()); n != 1 {
			t.Errorf("it is told %d times that the server sent another page", n)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
		if got := w.checkArchive(1); got != 3*mb {
			t.Errorf("the archive ends at %s", got)
		}
		w.checkStatuses()
	})
}

// TestWALThatIsNone: pages in their right place that hold no WAL are the
// server's own word, and stored as such. When it takes that back, nobody
// decides for a person which was right; and a new start believes nothing of it
// that no record vouches for.
func TestWALThatIsNone(t *testing.T) {
	for name, restart := range map[string]bool{"it connects again": false, "it starts again": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(1, 0))
				w := newWorld(t, fakepg.Options{})
				good := w.srv.FillTo(2*mb + 5000)
				w.srv.Script(func(ws *fakepg.Walsender) error {
					if err := errors.Join(ws.Send(good), ws.Raw(walAt(good, headed(good, bytesOf(random, 100_000))))); err != nil {
						return err
					}
					for {
						if _, err := ws.Status(); err != nil {
							return err
						}
					}
				})
				end, result := w.start(0)
				time.Sleep(12 * time.Second)
				w.srv.FillTo(3*mb + 5000)
				if restart {
					if err := end(); err != nil {
						t.Fatal(err)
					}
					w.run(30 * time.Second)
					if got := w.checkArchive(1); got != 3*mb {
						t.Errorf("the archive ends at %s", got)
					}
					w.checkStatuses()
					return
				}
				w.srv.Cut()
				select {
				case err := <-result:
					if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), good.String()) {
						t.Errorf("Run = %v, want a conflict at %s", err, good)
					}
				case <-time.After(time.Minute):
					t.Error("Run goes on")
				}
				if err := end(); err != nil {
					t.Error(err)
				}
				if got := w.checkArchive(1); got != 2*mb {
					t.Errorf("the archive ends at %s", got)
				}
			})
		})
	}
}
