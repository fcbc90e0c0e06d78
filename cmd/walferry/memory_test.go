package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/spool"
)

// How many segments --memory holds, and what is said when not one.
func TestMemoryLimit(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		memory   int64
		size     segment.Size
		compress string
		want     int64  // segments
		least    string // when none
	}{
		{256 * mb, 16 * mb, "lz4", 6, ""},
		{256 * mb, 64 * mb, "lz4", 1, ""},
		{256 * mb, 128 * mb, "lz4", 0, "426MB"},
		{426 * mb, 128 * mb, "lz4", 1, ""},
		{426*mb - 1, 128 * mb, "lz4", 0, "426MB"},
		{256 * mb, 1 << 30, "lz4", 0, "3114MB"},
		{90 * mb, 16 * mb, "lz4", 1, ""},
		{90*mb - 1, 16 * mb, "none", 0, "90MB"},
		{122 * mb, 16 * mb, "zstd", 2, ""},
		{256 * mb, 16 * mb, "zstd:9", 5, ""},
		{256 * mb, 16 * mb, "zstd:19", 0, "294MB"},
		{45 * mb, mb, "lz4", 1, ""},
		{1 << 40, 16 * mb, "lz4", 32766, ""},
	} {
		m, err := codec.Parse(c.compress)
		if err != nil {
			t.Fatal(err)
		}
		s := receiveSettings{SpoolDir: noSpool, Memory: c.memory, Compress: m}
		got, err := s.memoryLimit(c.size)
		fits := s.fits(c.size)
		if (fits == nil) != (err == nil) {
			t.Errorf("%d bytes of memory, %s, %s: fits %v, limit %v", c.memory, c.size, m, fits, err)
		}
		if c.least == "" && (err != nil || got != c.want*int64(c.size)) {
			t.Errorf("%d bytes of memory, %s, %s: %d segments, %v; want %d", c.memory, c.size, m, got/int64(c.size), err, c.want)
		}
		if c.least != "" && (!errors.Is(err, spool.ErrLimit) || !strings.Contains(err.Error(), "--memory "+c.least+" at least")) {
			t.Errorf("%d bytes of memory, %s, %s: %v; want --memory %s", c.memory, c.size, m, err, c.least)
		}
		if err == nil && memoryFor(got/int64(c.size), c.size, m) > c.memory {
			t.Errorf("%d segments of %s with %s need more than %d bytes", got/int64(c.size), c.size, m, c.memory)
		}
		// With a spool on a disk, no size is too large for the memory.
		s.SpoolDir = "/spool"
		if err := s.fits(c.size); err != nil {
			t.Error(err)
		}
	}
}

// Without a spool there is no socket, and what is in memory is not spooled.
func TestNoSpoolIsShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, f := &logText{}, &fakeParts{}
		f.r.Received.LSN, f.r.Spooled.LSN, f.u.Shipped.LSN = 0x3000, 0x3000, 0x1000
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		f.running(receiveSettings{Log: slog.New(&lineHandler{out: &lockedWriter{w: b}, level: slog.LevelInfo}), SpoolDir: noSpool}).show(ctx, &wg)
		time.Sleep(time.Hour)
		cancel()
		wg.Wait()
		if want := "walferry: positions received=0/3000 spooled=0/1000 shipped=0/1000 sealed=0/0 server=0/0\n"; b.String() != want {
			t.Errorf("the log has %q; want %q", b.String(), want)
		}
	})
}

// The error that ends such a run is one line, and wrong usage.
func TestMemoryThatHoldsNoSegment(t *testing.T) {
	s := receiveSettings{SpoolDir: noSpool, Memory: 64 << 20}
	err := receiveError(s.fits(16<<20), s)
	var exit *exitError
	if !errors.As(err, &exit) || exit.code != exitUsage || exit.hint != "" || strings.Contains(err.Error(), "\n") {
		t.Errorf("%#v", err)
	}
}
