package uploader

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/internal/patience"
	"github.com/walferry/walferry/segment"
)

// Status is what an Uploader is doing: a copy, for those who watch.
type Status struct {
	Shipped  segment.Position // as Uploader.Shipped; zero: not known yet
	Sealed   segment.Position // end of the gapless run of whole segments in the archive; likewise
	Pending  int              // as Uploader.Pending
	Troubles []patience.Report
	Stopped  error  // as Uploader.Stopped
	Last     Object // stored last in this run; zero: none
}

// Object is something that the archive has been found to have: it was stored,
// or was there with the same content.
type Object struct {
	Name   string
	Size   int64 // bytes in the store
	Stored time.Time
}

// Status may be called at any time. It waits for no store.
func (u *Uploader) Status() Status {
	s := Status{Pending: u.Pending(), Stopped: u.Stopped(), Last: u.archive.lastStored()}
	s.Sealed, _ = u.Sealed() // first: it is not beyond shipped then
	s.Shipped, _ = u.Shipped()
	for _, t := range []*patience.Trouble{u.trouble, u.removing} {
		if r, ok := t.Report(); ok {
			s.Troubles = append(s.Troubles, r)
		}
	}
	return s
}

// noting is an archive that remembers which WAL it was given last.
type noting struct {
	Archive

	mu   sync.Mutex
	last Object
}

func (a *noting) lastStored() Object {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}

// note returns err. Workers store side by side: last is what was answered last.
func (a *noting) note(name string, size int64, err error) error {
	if err == nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.last = Object{name, size, time.Now()}
	}
	return err
}

func (a *noting) PutSegment(ctx context.Context, n segment.Name, m codec.Method, frame objstore.Body, plain io.ReaderAt, size segment.Size) error {
	return a.note(n.String()+m.Ext(), frame.Size(), a.Archive.PutSegment(ctx, n, m, frame, plain, size))
}

func (a *noting) PutPartial(ctx context.Context, n segment.Name, w segment.LSN, m codec.Method, frame objstore.Body, plain io.ReaderAt, size segment.Size) error {
	return a.note(n.String()+".partial"+m.Ext(), frame.Size(), a.Archive.PutPartial(ctx, n, w, m, frame, plain, size))
}

func (a *noting) PutTail(ctx context.Context, t archive.Tail, m codec.Method, frame objstore.Body) error {
	return a.note(t.String()+m.Ext(), frame.Size(), a.Archive.PutTail(ctx, t, m, frame))
}

func (a *noting) RenewTail(ctx context.Context, t archive.Tail, m codec.Method, frame objstore.Body) error {
	return a.note(t.String()+m.Ext(), frame.Size(), a.Archive.RenewTail(ctx, t, m, frame))
}
