package receiver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
	"github.com/walferry/walferry/segment/disk/crashfs"
	"github.com/walferry/walferry/segment/spool"
)

const slotName = "walferry"

// world is a server, a spool in a real directory, and an archive in memory
// with a carrier between them. It lives in a synctest bubble.
type world struct {
	t       *testing.T
	srv     *fakepg.Server
	dir     string
	fs      disk.FS
	sp      *spool.Spool
	archive *testArchive
	carrier *carrier
	options Options
	tailing bool // of the carriers
	stalled bool // the carriers begin so
	keep    bool // the spool's files are kept, as in a pg_receivewal's directory
	log     *logBuffer
	r       *Receiver

	runError error // how the last run ended
}

// testArchive keeps whole segments, and answers like one that is reachable.
type testArchive struct {
	mu       sync.Mutex
	segments map[segment.Name][]byte
	partials map[segment.Name]segment.LSN
	gaps     segment.Gaps
	noGap    func(segment.Gap) error // what PutGap says; optional
	tails    map[segment.Name][]byte // of segments that are not whole: what their objects hold together
	beyond   map[segment.Name][]byte // of those whose timeline had ended: all that was held of them

	histories map[segment.Timeline][]byte
	id        spool.Identity
	down      error  // every call fails with it
	asked     func() // runs at each claim; optional
}

func (a *testArchive) Claim(_ context.Context, id spool.Identity) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked != nil {
		a.asked()
	}
	switch {
	case a.down != nil:
		return a.down
	case a.id == spool.Identity{}:
		a.id = id
	case a.id != id:
		return fmt.Errorf("%w: %w", ErrRefused, segment.ErrForeignCluster)
	}
	return nil
}

func (a *testArchive) RunEnd(_ context.Context, h segment.History, size segment.Size, _ segment.LSN) (segment.Position, bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down != nil {
		return segment.Position{}, false, a.down
	}
	whole := map[segment.LSN]bool{}
	end := segment.LSN(math.MaxUint64)
	for n := range a.segments {
		if h.Owner(n.End(size)-1) == n.Timeline {
			whole[n.Start(size)], end = true, min(end, n.Start(size))
		}
	}
	if len(whole) == 0 {
		return segment.Position{}, false, nil
	}
	for more := true; more; {
		if more = whole[end]; more {
			end += segment.LSN(size)
		} else if behind, ok := a.gaps.Behind(h, size, end); ok {
			end, more = behind, true
		}
	}
	return segment.Position{Timeline: h.Owner(end), LSN: end}, true, nil
}

func (a *testArchive) Gaps(context.Context) (segment.Gaps, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.gaps), a.down
}

func (a *testArchive) PutGap(_ context.Context, g segment.Gap, f GapFacts) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.down
	if err == nil && a.noGap != nil {
		err = a.noGap(g)
	}
	switch {
	case err != nil:
		return err
	case f.SystemIdentifier != a.id.SystemIdentifier || f.Slot == "" || f.Reason == "":
		return fmt.Errorf("the facts are %+v", f)
	case !slices.Contains(a.gaps, g):
		a.gaps = append(a.gaps, g)
	}
	return nil
}

func (a *testArchive) Segment(_ context.Context, n segment.Name) (io.ReadCloser, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down != nil {
		return nil, a.down
	}
	b, ok := a.segments[n]
	if !ok {
		return nil, fmt.Errorf("%s: %w", n, ErrNotArchived)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (a *testArchive) Histories(_ context.Context, above segment.Timeline) ([]segment.History, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []segment.History
	for t, content := range a.histories {
		h, err := segment.ParseHistory(t, content)
		if err != nil {
			return nil, err
		}
		if t > above {
			all = append(all, h)
		}
	}
	return all, a.down
}

func (a *testArchive) TailEnd(_ context.Context, n segment.Name) (uint32, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return uint32(len(a.tails[n])), a.down
}

func (a *testArchive) AssembleTails(_ context.Context, n segment.Name, _ segment.Size, into Patch) (uint32, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down != nil {
		return 0, a.down
	}
	b := a.tails[n]
	if len(b) == 0 {
		return 0, nil
	}
	// Some more than counts, where there is nothing yet: an object that turned
	// out not to be of the chain.
	remains := []byte("remains")[:min(7, int(segment.MinSize)-len(b))]
	there := make([]byte, len(remains))
	if _, err := into.ReadAt(there, int64(len(b))); err != nil || !zero(there) {
		remains = nil
	}
	if _, err := into.WriteAt(append(bytes.Clone(b), remains...), 0); err != nil {
		return 0, err
	}
	return uint32(len(b)), nil
}

func (a *testArchive) TailSegments(_ context.Context, t segment.Timeline) ([]segment.Name, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var names []segment.Name
	for n := range a.tails {
		if n.Timeline == t {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, segment.Name.Compare)
	return names, a.down
}

// carrier is an uploader: it moves whole segments into a testArchive while it
// is not held up.
type carrier struct {
	sp *spool.Spool
	ar *testArchive

	mu       sync.Mutex
	stalled  chan struct{} // open while nothing is carried; nil when it flows
	failing  bool
	stopped  error
	carried  map[segment.Name]segment.LSN // where each ends
	shipped  segment.Position
	known    bool
	switches map[segment.Timeline]segment.Position // where a timeline ended -> the child
	changed  chan struct{}

	tailing bool // what is offered goes up at once
	tails   map[segment.Name]segment.LSN
	offers  []offered
}

// offered is a call of Offer that was not like the one before.
type offered struct {
	g     *spool.Segment
	to    segment.LSN
	hurry bool
}

func (c *carrier) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		g, err := c.sp.Take(ctx)
		if err != nil {
			return
		}
		wg.Go(func() { c.carry(ctx, g) })
	}
}

func (c *carrier) carry(ctx context.Context, g *spool.Segment) {
	var b bytes.Buffer
	b.Grow(int(segment.MinSize) + bytes.MinRead)
	_, err := b.ReadFrom(g.Follow(ctx))
	if errors.Is(err, spool.ErrFinished) {
		// Its timeline ended before what was read already: once more, up to there.
		b.Reset()
		_, err = b.ReadFrom(g.Follow(ctx))
	}
	if err != nil {
		return
	}
	c.mu.Lock()
	stalled := c.stalled
	c.mu.Unlock()
	if stalled != nil {
		select {
		case <-stalled:
		case <-ctx.Done():
			return
		}
	}
	c.ar.mu.Lock()
	end := g.End()
	if w, ended := g.Finished(); ended {
		end = w
		if w > g.Start() {
			c.ar.partials[g.Name()] = w
		}
		if to := g.Beyond(); to > w {
			all := make([]byte, to-g.Start())
			if err := g.ReadAt(all, g.Start()); err != nil {
				c.ar.mu.Unlock()
				return
			}
			c.ar.beyond[g.Name()] = all
		}
	} else {
		c.ar.segments[g.Name()] = b.Bytes()
	}
	c.ar.mu.Unlock()
	if err := c.sp.Drop(g); err != nil {
		return // the disk has failed: the next run finds it again
	}
	c.mu.Lock()
	c.carried[g.Name()] = end
	c.follow()
	c.mu.Unlock()
	c.notify()
}

// follow moves shipped over what joins it: segments arrive in any order.
func (c *carrier) follow() {
	for again := true; again; {
		again = false
		if to, ok := c.switches[c.shipped.Timeline]; ok && c.shipped.LSN >= to.LSN {
			c.shipped, again = to, true
		}
		for n, end := range c.carried {
			if n.Timeline == c.shipped.Timeline && n.Start(segment.MinSize) <= c.shipped.LSN && end > c.shipped.LSN {
				c.shipped.LSN, again = end, true
			}
		}
	}
}

func (c *carrier) notify() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

func (c *carrier) stall() { c.mu.Lock(); defer c.mu.Unlock(); c.stalled = make(chan struct{}) }
func (c *carrier) flow()  { c.mu.Lock(); defer c.mu.Unlock(); close(c.stalled); c.stalled = nil }

func (c *carrier) fail(failing bool) {
	c.mu.Lock()
	c.failing = failing
	c.mu.Unlock()
	c.notify()
}

func (c *carrier) stop(err error) {
	c.mu.Lock()
	c.stopped = err
	c.mu.Unlock()
	c.notify()
}

func (c *carrier) Base(p segment.Position) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shipped, c.known = p, true
	c.follow()
}

func (c *carrier) Switch(t segment.Timeline, at segment.LSN, child segment.Timeline) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.switches[t] = segment.Position{Timeline: child, LSN: at}
	c.follow()
	c.ar.mu.Lock()
	defer c.ar.mu.Unlock()
	for _, t := range c.sp.Histories() {
		if content, err := c.sp.History(t); err == nil {
			c.ar.histories[t] = content
		}
	}
}

func (c *carrier) Sealed() (segment.Position, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shipped, c.known
}

func (c *carrier) Shipped() (segment.Position, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.shipped
	for {
		if to, ok := c.switches[p.Timeline]; ok && p.LSN >= to.LSN {
			p = to
			continue
		}
		end := c.tails[segment.MinSize.Name(p.Timeline, p.LSN)]
		if end <= p.LSN {
			return p, c.known
		}
		p.LSN = end
	}
}

func (c *carrier) Chained(n segment.Name, to segment.LSN) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tails[n] = max(c.tails[n], to)
}

func (c *carrier) Offer(g *spool.Segment, to segment.LSN, hurry bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := offered{g, to, hurry}
	if n := len(c.offers); n == 0 || c.offers[n-1] != o {
		c.offers = append(c.offers, o)
	}
	if !c.tailing || c.stalled != nil || to <= max(g.Start(), c.tails[g.Name()]) {
		return
	}
	b := make([]byte, to-g.Start())
	if err := g.ReadAt(b, g.Start()); err != nil {
		return
	}
	c.ar.mu.Lock()
	c.ar.tails[g.Name()] = b
	c.ar.mu.Unlock()
	c.tails[g.Name()] = to
	c.notify()
}
func (c *carrier) Failing() bool            { c.mu.Lock(); defer c.mu.Unlock(); return c.failing }
func (c *carrier) Stopped() error           { c.mu.Lock(); defer c.mu.Unlock(); return c.stopped }
func (c *carrier) Changed() <-chan struct{} { return c.changed }

// newWorld makes a world with 1 MB segments.
func newWorld(t *testing.T, o fakepg.Options) *world {
	t.Helper()
	if o.SegmentSize == 0 {
		o.SegmentSize = segment.MinSize
	}
	w := &world{t: t, srv: fakepg.New(o), dir: t.TempDir(), fs: disk.OS{}, log: &logBuffer{}}
	t.Cleanup(w.srv.Close)
	w.srv.SetSlot(slotName, mb) // a server that has kept its WAL from the beginning
	w.archive = &testArchive{segments: map[segment.Name][]byte{}, partials: map[segment.Name]segment.LSN{}, tails: map[segment.Name][]byte{},
		beyond: map[segment.Name][]byte{}, histories: map[segment.Timeline][]byte{}}
	w.options = Options{Slot: slotName, ApplicationName: "walferry", Hold: 32 << 20, ShutdownGrace: 30 * time.Second}
	return w
}

// connect dials a server of the world.
func connect(srv *fakepg.Server) func(ctx context.Context) (*replication.Conn, error) {
	return func(ctx context.Context) (*replication.Conn, error) {
		c, err := replication.ParseConfig(replication.Params{DSN: "host=db port=5432 user=walferry sslmode=disable", ApplicationName: "walferry"})
		if err != nil {
			return nil, err
		}
		c.DialFunc = srv.Dial
		return replication.Connect(ctx, c)
	}
}

// start begins a run on the world's spool; the returned function ends it and
// gives its error.
func (w *world) start(limit int64) (end func() error, result <-chan error) {
	w.t.Helper()
	sp, err := spool.Open(w.fs, w.dir, spool.Options{Limit: limit, Keep: w.keep})
	if err != nil {
		w.t.Fatal(err)
	}
	w.sp = sp
	w.carrier = &carrier{sp: sp, ar: w.archive, changed: make(chan struct{}, 1), switches: map[segment.Timeline]segment.Position{}, carried: map[segment.Name]segment.LSN{}, tails: map[segment.Name]segment.LSN{}, tailing: w.tailing}
	if w.stalled {
		w.carrier.stall()
	}
	w.options.Log = slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if w.options.Connect == nil {
		w.options.Connect = connect(w.srv)
	}
	w.r = New(sp, w.archive, w.carrier, w.options)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { w.carrier.run(ctx) })
	done := make(chan error, 1)
	r := w.r
	wg.Go(func() { done <- r.Run(ctx) })
	ended := false
	end = func() error {
		if ended {
			return nil
		}
		ended = true
		cancel()
		wg.Wait()
		if err := sp.Close(); err != nil && !errors.Is(err, crashfs.ErrCrashed) && !errors.Is(err, syscall.EIO) {
			w.t.Error(err)
		}
		select {
		case err := <-done:
			w.runError = err
			return err
		default:
			return nil
		}
	}
	w.t.Cleanup(func() {
		if err := end(); err != nil && !errors.Is(err, crashfs.ErrCrashed) {
			w.t.Errorf("Run: %v", err)
		}
		if w.t.Failed() {
			w.t.Log(w.log.String())
		}
	})
	return end, done
}

// checkArchive holds every archived segment against the server's bytes, and
// returns where the archive ends on timeline t.
func (w *world) checkArchive(t segment.Timeline) segment.LSN {
	w.t.Helper()
	w.archive.mu.Lock()
	defer w.archive.mu.Unlock()
	var end segment.LSN
	for n, b := range w.archive.segments {
		if !bytes.Equal(b, w.srv.WAL().Segment(n)) {
			w.t.Errorf("segment %s in the archive differs from the server's", n)
		}
		if n.Timeline == t {
			end = max(end, n.End(w.srv.WAL().Size()))
		}
	}
	for l := w.srv.WAL().Size().Start(end) - segment.LSN(w.srv.WAL().Size()); l >= mb && l < end; l -= segment.LSN(w.srv.WAL().Size()) {
		found := false
		for n := range w.archive.segments {
			found = found || n.Start(w.srv.WAL().Size()) == l
		}
		if !found {
			w.t.Errorf("the archive ends at %s and has no segment at %s", end, l)
		}
	}
	return end
}

// checkStatuses holds every status against what the server ever had.
func (w *world) checkStatuses() {
	w.t.Helper()
	for _, s := range w.srv.Statuses() {
		if s.Apply != 0 {
			w.t.Errorf("an apply LSN was reported: %+v", s)
		}
		if s.Flush > s.Write || s.Write > w.srv.End() {
			w.t.Errorf("a status is beyond what was there (server ends at %s): %+v", w.srv.End(), s)
		}
	}
}

// lastStatus returns the last status that the server has received.
func (w *world) lastStatus() replication.Status {
	all := w.srv.Statuses()
	if len(all) == 0 {
		return replication.Status{}
	}
	return all[len(all)-1]
}

// logBuffer is a log that is read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// settle lets everything run that can run without time passing.
func settle() { synctest.Wait() }

var errDown = errors.New("the store is away")
