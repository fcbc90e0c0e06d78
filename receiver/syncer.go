package receiver

import (
	"errors"
	"time"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// syncer does the fsyncs beside the loop, one at a time, so that a slow disk
// keeps nobody from answering the server. (Those of direct, in its stead, are
// beside the loop as well.)
type syncer struct {
	queue []fullSegment // that wait to be sealed, in order
	busy  bool          // a request is under way; its result comes on done
	took  time.Duration // by the last fsync of an open segment

	requests chan syncRequest
	done     chan syncResult
	ended    chan struct{}
}

// fullSegment is a segment that has all its bytes and is not sealed.
type fullSegment struct {
	*spool.Segment
	since time.Time
}

type syncRequest struct {
	seg  *spool.Segment
	seal bool
}

type syncResult struct {
	seg     *spool.Segment
	sealed  bool
	durable segment.LSN // everything of the segment before it is durable
	took    time.Duration
	err     error
}

func startSyncer() *syncer {
	d := &syncer{requests: make(chan syncRequest), done: make(chan syncResult, 1), ended: make(chan struct{})}
	go func() {
		defer close(d.ended)
		for req := range d.requests {
			d.done <- req.do()
		}
	}()
	return d
}

func (req syncRequest) do() syncResult {
	res := syncResult{seg: req.seg, sealed: req.seal}
	if req.seal {
		res.err = req.seg.Seal()
		res.durable = req.seg.Written()
	} else {
		began := time.Now()
		res.durable, res.err = req.seg.Sync()
		res.took = time.Since(began)
	}
	if errors.Is(res.err, spool.ErrDropped) {
		// The uploader was faster: the archive has it, which is more.
		res.durable, res.err = req.seg.End(), nil
	}
	return res
}

// start gives the disk its next work. It must not be busy.
func (d *syncer) start(g *spool.Segment, seal bool) {
	d.busy = true
	d.requests <- syncRequest{g, seal}
}

// stop ends the goroutine and waits for it. It must not be busy.
func (d *syncer) stop() {
	close(d.requests)
	<-d.ended
}
