package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"testing"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/segment"
)

// countingStore counts its listings, and can refuse them.
type countingStore struct {
	objstore.Store
	lists  int
	refuse bool
}

func (c *countingStore) List(ctx context.Context, o objstore.ListOptions) iter.Seq2[objstore.Info, error] {
	c.lists++
	if c.refuse {
		return func(yield func(objstore.Info, error) bool) { yield(objstore.Info{}, errors.New("away")) }
	}
	return c.Store.List(ctx, o)
}

// A long directory is held against the archive with few listings, the newest
// segment first, as the scan asks.
func TestArchivedAlready(t *testing.T) {
	const size = segment.Size(16 << 20)
	name := func(i int) segment.Name { return size.Name(1, segment.LSN(i)*segment.LSN(size)) }
	const first, last = 3000, 15_000
	stored := func(i int) bool { return i%7 != 0 && i < 14_000 }
	store := &countingStore{Store: mem.New()}
	for i := first - 2000; i <= last; i++ {
		if stored(i) {
			if err := store.Put(t.Context(), "wal_005/"+name(i).String()+".lz4", objstore.Bytes(nil)); err != nil {
				t.Fatal(err)
			}
		}
	}
	hide := archivedAlready(t.Context(), archive.New(store, archive.Options{}), slog.New(slog.DiscardHandler))
	for i := last; i >= first; i-- {
		if hide(name(i)) != stored(i) {
			t.Fatalf("%s: %v", name(i), !stored(i))
		}
	}
	if store.lists > 40 {
		t.Errorf("%d listings", store.lists)
	}
	if hide(size.Name(2, segment.LSN(last)*segment.LSN(size))) {
		t.Error("a segment of another timeline is taken to be there")
	}

	store.refuse, store.lists = true, 0
	hide = archivedAlready(t.Context(), archive.New(store, archive.Options{}), slog.New(slog.DiscardHandler))
	for i := last; i >= first; i-- {
		if hide(name(i)) {
			t.Fatal(fmt.Sprint(name(i), " is taken to be there"))
		}
	}
	if store.lists > 10 {
		t.Errorf("%d listings were refused", store.lists)
	}
}
