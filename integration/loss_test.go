package integration

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/integration/s3server"
	"github.com/walferry/walferry/segment"
)

// Everything but the bucket is lost at one moment, and commits waited for
// nobody: no commit is missing that lies below what the store had confirmed.
func TestLossAsynchronous(t *testing.T) {
	t.Parallel()
	d := newDoomed(t)
	d.rounds(rounds(2, 20), func() play { return play{} })
}

// The same while commits wait for the receiver, and it for the store: no
// commit that was acknowledged is missing.
func TestLossSynchronous(t *testing.T) {
	t.Parallel()
	d := newDoomed(t)
	loseNone(t, d.rounds(rounds(2, 20), func() play {
		return play{receive: []string{"--ack", "archive"}, synchronous: "on"}
	}))
}

// The same without a disk on the receiver's host.
func TestLossWithoutSpool(t *testing.T) {
	t.Parallel()
	d := newDoomed(t)
	loseNone(t, d.rounds(rounds(1, 5), func() play {
		return play{receive: []string{"--spool", "none", "--ack", "archive"}, synchronous: "on"}
	}))
	if _, err := os.Stat(d.stations[0].spoolDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a spool all the same (%v)", err)
	}
}

// The server is lost for good while commits wait for the receiver's disk, and
// that survives. Started again, without a server, the receiver stores what its
// disk holds, up to the last whole record: no commit that was acknowledged is
// missing.
func TestLossOfTheServer(t *testing.T) {
	t.Parallel()
	d := newDoomed(t)
	st := d.stations[0]
	ahead := 0
	all := d.rounds(rounds(1, 10), func() play {
		p := play{receive: []string{"--ack", "archive"}, synchronous: "remote_write", keepsSpool: true}
		if d.round > 0 && d.random.IntN(3) == 0 {
			p.receive, p.synchronous = []string{"--ack", "spool"}, "on"
		}
		p.trouble = func() {
			// The disk is ahead of the store.
			fault := []s3server.Fault{s3server.Unavailable, s3server.Reset, s3server.BlackHole}[d.random.IntN(3)]
			d.proxy.Inject(fault, "PUT", -1)
			d.pause(2 * time.Second)
		}
		p.more = func() {
			d.proxy.Heal()
			shipped, held := d.shipped(), d.spooledEnd(st)
			if held > shipped {
				ahead++
			}
			d.logf("when all was lost the archive reached %s, and the disk held records up to %s", shipped, held)
			d.begin(st, p.receive...)
			eventually(t, "the archive to reach "+held.String(), func() bool {
				if !st.run.running() {
					t.Fatalf("the receiver ended: %v", st.run.err)
				}
				return d.shipped() >= held
			})
			st.run.stop()
			d.loseSpool(st)
		}
		return p
	})
	loseNone(t, all)
	if ahead == 0 {
		t.Error("the disk never held more than the archive")
	}
}

// spooledEnd is the end of the last whole record in a station's spool on the
// round's timeline, as far as its segments go without a gap.
func (d *doomed) spooledEnd(st *station) (end segment.LSN) {
	d.t.Helper()
	held := map[segment.Name]string{}
	if _, err := os.Stat(st.spoolDir()); errors.Is(err, fs.ErrNotExist) {
		return 0 // it died before it made one
	}
	for _, name := range spooled(d.t, st.spoolDir()) {
		n, err := segment.ParseName(strings.TrimSuffix(name, ".partial"))
		if err != nil {
			d.t.Fatal(err)
		}
		if n.Timeline == d.begins.Timeline {
			held[n] = name
		}
	}
	var first segment.Name
	for n := range held {
		if first == (segment.Name{}) || n.Compare(first) < 0 {
			first = n
		}
	}
	for n := first; held[n] != ""; n = n.Next(d.size) {
		if !strings.HasSuffix(held[n], ".partial") {
			end = n.End(d.size)
			continue
		}
		f, err := os.Open(filepath.Join(st.spoolDir(), held[n]))
		if err != nil {
			d.t.Fatal(err)
		}
		from, to, err := segment.VerifiedRecords(f, int64(d.size), segment.PageRules{Name: n, Size: d.size})
		if err := errors.Join(err, f.Close()); err != nil {
			d.t.Fatal(err)
		}
		if from < to {
			end = to
		}
		break
	}
	return end
}
