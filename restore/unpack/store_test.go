package unpack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
)

// testRange makes objects of a megabyte have many ranges.
const testRange = 64 << 10

// unpackRanges is Unpack with small ranges.
func unpackRanges(ctx context.Context, src Source, b archive.Backup, o Options) error {
	return unpack(ctx, src, b, o, seams{rangeSize: testRange})
}

var errStorage = errors.New("the storage is away")

// large is a backup with a part of several ranges.
func large(t *testing.T, dir string) *backup {
	b := newBackup(t, dir)
	b.parts = map[string][]item{
		"part_001.tar": {
			{name: "backup_label", content: "x"}, {name: "base/"}, {name: "base/1", content: content(1, 3*testRange+4711)},
			{name: "base/2", content: content(2, testRange)}, {name: "global/"}, {name: "global/pg_control", content: content(3, 8192)},
		},
		"part_002.tar.lz4": {{name: "base/3", content: content(4, testRange)}},
	}
	b.spec = nil
	return b
}

// TestStorageFails: a store that fails for a while, at any call, in any way,
// costs time and nothing else.
func TestStorageFails(t *testing.T) {
	for name, fail := range map[string]func() (io.Reader, error){
		"a call":  func() (io.Reader, error) { return nil, errStorage },
		"at once": func() (io.Reader, error) { return iotest.ErrReader(errStorage), nil },
		"in the middle": func() (io.Reader, error) {
			return io.MultiReader(bytes.NewReader(make([]byte, 100)), iotest.ErrReader(errStorage)), nil
		},
		"short":           func() (io.Reader, error) { return bytes.NewReader(make([]byte, 100)), nil },
		"nothing":         func() (io.Reader, error) { return bytes.NewReader(nil), nil },
		"not as asked":    func() (io.Reader, error) { return nil, fmt.Errorf("503: %w", errStorage) },
		"cut without EOF": func() (io.Reader, error) { return iotest.TimeoutReader(bytes.NewReader(make([]byte, 100))), nil },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			b, src := large(t, dir).build()
			synctest.Test(t, func(t *testing.T) {
				failed := map[string]int{}
				src.fault = func(name string, offset int64) (io.Reader, error) {
					key := fmt.Sprint(name, offset)
					if failed[key]++; failed[key] > 2 {
						return nil, nil
					}
					if name == "" {
						return nil, errStorage
					}
					return fail()
				}
				if err := unpackRanges(t.Context(), src, b, Options{Dir: filepath.Join(dir, "data")}); err != nil {
					t.Fatal(err)
				}
				if len(failed) < 8 {
					t.Errorf("only %v failed", failed)
				}
			})
			if got := readTree(t, filepath.Join(dir, "data")); got["base/1"] != content(1, 3*testRange+4711) || got["base/2"] != content(2, testRange) || got["base/3"] != content(4, testRange) {
				t.Error("other bytes")
			}
		})
	}
}

// TestStorageStaysAway: a store that does not come back ends the restore when
// patience does, with its reason, and no damage is spoken of.
func TestStorageStaysAway(t *testing.T) {
	for _, where := range []string{"", "backup_manifest", partsDir + "part_001.tar", partsDir + "part_002.tar.lz4"} {
		dir := t.TempDir()
		b, src := large(t, dir).build()
		synctest.Test(t, func(t *testing.T) {
			src.fault = func(name string, offset int64) (io.Reader, error) {
				if name != where || offset == 0 && name != "" && name != "backup_manifest" && !strings.HasSuffix(name, "lz4") {
					return nil, nil
				}
				if name == "" {
					return nil, errStorage
				}
				return iotest.ErrReader(errStorage), nil
			}
			begin := time.Now()
			err := unpackRanges(t.Context(), src, b, Options{Dir: filepath.Join(dir, "data"), Patience: time.Minute})
			if !errors.Is(err, errStorage) || errors.Is(err, ErrDamaged) || errors.Is(err, codec.ErrDamaged) || !strings.Contains(err.Error(), "gave up after") {
				t.Errorf("%s: %v", where, err)
			}
			if took := time.Since(begin); took < time.Minute || took > 3*time.Minute {
				t.Errorf("%s: gave up after %s", where, took)
			}
		})
		sameTree(t, dir, map[string]string{".": "dir 755"})
	}
}

// TestFinal: what waiting does not mend ends the restore at once.
func TestFinal(t *testing.T) {
	for _, is := range []error{objstore.ErrNotFound, objstore.ErrNoStore, objstore.ErrDenied} {
		dir := t.TempDir()
		b, src := large(t, dir).build()
		synctest.Test(t, func(t *testing.T) {
			src.fault = func(name string, offset int64) (io.Reader, error) {
				if offset == 0 {
					return nil, nil
				}
				return nil, fmt.Errorf("%s: %w", name, is)
			}
			begin := time.Now()
			if err := unpackRanges(t.Context(), src, b, Options{Dir: filepath.Join(dir, "data")}); !errors.Is(err, is) {
				t.Errorf("%v; want %v", err, is)
			}
			if took := time.Since(begin); took > 0 {
				t.Errorf("%v: it waited %s", is, took)
			}
		})
		sameTree(t, dir, map[string]string{".": "dir 755"})
	}
}

// TestCancel ends a restore in the midst of the downloads: it returns when all
// of it is still (or synctest says so), and leaves nothing.
func TestCancel(t *testing.T) {
	reason := errors.New("enough")
	for after := 1; after <= 9; after++ {
		dir := t.TempDir()
		b, src := large(t, dir).build()
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			calls := 0
			src.fault = func(string, int64) (io.Reader, error) {
				if calls++; calls == after {
					cancel(reason)
				}
				return nil, nil
			}
			if err := unpackRanges(ctx, src, b, Options{Dir: filepath.Join(dir, "data")}); !errors.Is(err, reason) || errors.Is(err, ErrDamaged) {
				t.Errorf("after %d calls: %v", after, err)
			}
		})
		sameTree(t, dir, map[string]string{".": "dir 755"})
	}
}

// TestBounded: however many parts there are, no more memory is used than was
// said, and every buffer comes back.
func TestBounded(t *testing.T) {
	dir := t.TempDir()
	b := large(t, dir)
	for i := range 9 {
		b.parts[fmt.Sprintf("part_1%d.tar", i)] = []item{{name: fmt.Sprintf("base/1%d", i), content: content(byte(i), 2*testRange)}}
	}
	name, src := b.build()
	d := newDownloads(src, name.Name, 3, testRange, time.Minute, nil, func(int) {})
	all, err := src.BackupObjects(t.Context(), name.Name)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, len(all))
	for _, o := range all {
		go func() {
			in := d.open(t.Context(), o.Key, o.Size)
			defer in.Close()
			got, err := io.ReadAll(in)
			if err == nil && !bytes.Equal(got, src.objects[o.Key]) {
				err = fmt.Errorf("%s has other bytes", o.Key)
			}
			if sum, whole := in.checksum(); err == nil && (!whole || sum != castagnoli(got)) {
				err = fmt.Errorf("%s has another checksum", o.Key)
			}
			done <- err
		}()
	}
	for range all {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	// One that is closed before its end gives its buffers back, too.
	in := d.open(t.Context(), partsDir+"part_001.tar", int64(len(src.objects[partsDir+"part_001.tar"])))
	if _, err := io.CopyN(io.Discard, in, 5); err != nil {
		t.Fatal(err)
	}
	in.Close()
	if len(d.free) != 3 {
		t.Errorf("%d of 3 buffers are free", len(d.free))
	}
}
