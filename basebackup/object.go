package basebackup

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
)

// object is an object in tar_partitions/ on its way into the store. What is
// written to it goes there in parts, several at a time; one that fits into a
// single part goes as a whole.
type object struct {
	cutter
	t      *taking
	name   string
	ending bool
	upload objstore.Upload // nil until the first part is whole
	wg     sync.WaitGroup  // of the parts under way
}

// newObject makes an object of which expected bytes are expected (negative:
// nobody knows). Parts of up to inMemory bytes are held in memory; the object
// has so many slots.
func (t *taking) newObject(name string, expected, inMemory int64, slots int) *object {
	o := &object{t: t, name: name}
	o.cutter = cutter{
		ctx:   t.ctx,
		size:  newSizing(expected, t.o.MaxParts).size,
		slots: make(chan struct{}, slots),
		frame: func(size int64) *codec.Frame {
			if size > inMemory {
				return t.onDisk.New()
			}
			return t.inMemory.New()
		},
		cost: func(size int64) int {
			if size > inMemory {
				return 1
			}
			return min(int((size+slot-1)/slot), slots)
		},
		store: o.put,
	}
	t.objects = append(t.objects, o)
	return o
}

// end is called when everything was written.
func (o *object) end() error {
	o.ending = true
	return o.cutter.end()
}

// put stores a part that is whole, beside what follows.
func (o *object) put(p *part) error {
	t := o.t
	if o.upload == nil && o.ending {
		defer p.release()
		return t.persist(p.frame.Size(), func() error {
			return t.writer.Put(t.ctx, partsDir+o.name, p.frame)
		})
	}
	if o.upload == nil {
		err := t.persist(0, func() (err error) {
			o.upload, err = t.writer.BeginPart(t.ctx, o.name)
			return err
		})
		if err != nil {
			p.release()
			return err
		}
	}
	o.wg.Add(1)
	t.crew.start(func() error {
		defer o.wg.Done()
		defer p.release()
		err := t.persist(p.frame.Size(), func() error {
			return o.upload.Part(t.ctx, p.number, p.at, p.frame)
		})
		if err != nil {
			return fmt.Errorf("storing part %d of %s: %w", p.number, o.name, err)
		}
		return nil
	})
	return nil
}

// complete waits for the parts and makes the object of them.
func (o *object) complete() error {
	o.wg.Wait()
	if err := context.Cause(o.t.ctx); err != nil {
		return err // perhaps a part's
	}
	if o.upload == nil {
		return nil
	}
	if err := o.t.persist(0, func() error { return o.upload.Complete(o.t.ctx) }); err != nil {
		return fmt.Errorf("storing %s: %w", o.name, err)
	}
	return nil
}

// facts are what walferry.json says of it.
func (o *object) facts() archive.BackupPart {
	return archive.BackupPart{Name: o.name, Size: o.written, CRC32C: o.crc}
}

// abandon frees what a backup that failed has left, when nothing works on it
// any more.
func (o *object) abandon(ctx context.Context) error {
	o.free()
	if o.upload == nil {
		return nil
	}
	return o.upload.Abort(ctx)
}

// final tells a failure of the store that does not pass.
func final(err error) bool {
	for _, e := range []error{
		objstore.ErrExists, objstore.ErrUploadLost, objstore.ErrDenied, objstore.ErrNoStore, objstore.ErrBadKey,
		archive.ErrConflict, archive.ErrHistory, codec.ErrDamaged, context.Canceled,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	var taken *archive.NamesTakenError
	return errors.As(err, &taken)
}
