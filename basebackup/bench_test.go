package basebackup

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pierrec/lz4/v4"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/replication"
)

// forgetful is a store that reads what it is given, as one does that sends it,
// and keeps of what comes in parts nothing but the sizes.
type forgetful struct {
	*mem.Store
	mu    sync.Mutex
	sizes map[string]int64
}

func newForgetful() *forgetful { return &forgetful{Store: mem.New(), sizes: map[string]int64{}} }

func (f *forgetful) BeginUpload(_ context.Context, key string) (objstore.Upload, error) {
	return &forgotten{store: f, key: key}, nil
}

// List adds what is forgotten.
func (f *forgetful) List(ctx context.Context, o objstore.ListOptions) iter.Seq2[objstore.Info, error] {
	all := map[string]objstore.Info{}
	for info, err := range f.Store.List(ctx, o) {
		must(err)
		all[info.Key] = info
	}
	f.mu.Lock()
	for key, size := range f.sizes {
		if len(key) >= len(o.Prefix) && key[:len(o.Prefix)] == o.Prefix && o.Delimiter == "" {
			all[key] = objstore.Info{Key: key, Size: size}
		}
	}
	f.mu.Unlock()
	return func(yield func(objstore.Info, error) bool) {
		for _, key := range slices.SortedFunc(func(yield func(string) bool) {
			for k := range all {
				if !yield(k) {
					return
				}
			}
		}, cmp.Compare[string]) {
			if !yield(all[key], nil) {
				return
			}
		}
	}
}

type forgotten struct {
	store *forgetful
	key   string
	mu    sync.Mutex
	size  int64
}

func (u *forgotten) Part(_ context.Context, _ int, _ int64, body objstore.Body) error {
	buf := make([]byte, 32<<10)
	for at := int64(0); at < body.Size(); {
		n, err := body.ReadAt(buf, at)
		if n == 0 {
			return err
		}
		at += int64(n)
	}
	u.mu.Lock()
	u.size += body.Size()
	u.mu.Unlock()
	return nil
}

func (u *forgotten) Complete(context.Context) error {
	u.store.mu.Lock()
	defer u.store.mu.Unlock()
	u.store.sizes[u.key] = u.size
	return nil
}

func (u *forgotten) Abort(context.Context) error { return nil }

// flood is a server with files of equal content, as many as one wants, which
// takes no memory and next to no time to send them.
type flood struct {
	*script
	method   string
	estimate int64 // bytes: what the server says that it will send, if more
	files    int
	blocks   int // of a file, 256 kB each
	block    []byte
	packed   []byte
	queue    []replication.BackupMessage
	at       int // what comes next: files, each a header and blocks
	manifest []byte
}

func newFlood(files int, fileSize int64) *flood {
	f := &flood{script: &script{}, files: files, blocks: int(fileSize / (256 << 10)), block: pages(256<<10, 9)}
	return f
}

func (f *flood) Tablespaces() []replication.Tablespace {
	return []replication.Tablespace{{Size: max(f.size(), f.estimate)}}
}

func (f *flood) size() int64 { return int64(f.files) * int64(f.blocks) * int64(len(f.block)) }

func (f *flood) name(i int) string { return fmt.Sprintf("base/5/%d", 16384+i) }

func (f *flood) BaseBackup(_ context.Context, o replication.BackupOptions) (stream, error) {
	f.method = o.Compression
	name := "base.tar"
	if f.method != "" {
		name += ".lz4"
	}
	f.packed = f.block
	if f.method != "" {
		f.packed = make([]byte, lz4.CompressBlockBound(len(f.block)))
		var c lz4.Compressor
		n, err := c.CompressBlock(f.block, f.packed)
		must(err)
		f.packed = append(binary.LittleEndian.AppendUint32(nil, uint32(n)), f.packed[:n]...)
	}
	crc := uint32(0)
	for range f.blocks {
		crc = crc32.Update(crc, castagnoli, f.block)
	}
	var b bytes.Buffer
	b.WriteString("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [")
	for i := range f.files {
		sep := ","
		if i == 0 {
			sep = ""
		}
		fmt.Fprintf(&b, "%s\n{ \"Path\": %q, \"Size\": %d, \"Last-Modified\": \"2026-11-26 11:11:55 GMT\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"%x\" }",
			sep, f.name(i), f.size()/int64(f.files), binary.LittleEndian.AppendUint32(nil, crc))
	}
	fmt.Fprintf(&b, "\n],\n\"WAL-Ranges\": [\n{ \"Timeline\": %d, \"Start-LSN\": %q, \"End-LSN\": %q }\n],\n", testStart.Timeline, testStart.LSN, testStop.LSN)
	f.manifest = sealManifest(b.Bytes())
	f.queue = []replication.BackupMessage{{Kind: replication.BackupArchive, Name: name, Tablespace: f.Tablespaces()[0]}}
	if f.method != "" {
		f.data([]byte{0x04, 0x22, 0x4d, 0x18, 0x40, 0x50, 0x77})
	}
	return f, nil
}

func (f *flood) data(b []byte) {
	f.queue = append(f.queue, replication.BackupMessage{Kind: replication.BackupData, Data: b})
}

// stored adds content that is not compressed.
func (f *flood) stored(b []byte) {
	if f.method != "" {
		f.data(binary.LittleEndian.AppendUint32(nil, uint32(len(b))|1<<31))
	}
	f.data(b)
}

func (f *flood) Next(ctx context.Context) (replication.BackupMessage, error) {
	if err := ctx.Err(); err != nil {
		return replication.BackupMessage{}, err
	}
	if len(f.queue) > 0 {
		m := f.queue[0]
		f.queue = f.queue[1:]
		return m, nil
	}
	file, block := f.at/(1+f.blocks), f.at%(1+f.blocks)
	f.at++
	switch {
	case file < f.files && block > 0:
		return replication.BackupMessage{Kind: replication.BackupData, Data: f.packed}, nil
	case file < f.files:
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		must(w.WriteHeader(&tar.Header{Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Name: f.name(file), Size: f.size() / int64(f.files)}))
		f.stored(b.Bytes())
	case f.manifest != nil:
		f.stored(make([]byte, 1024))
		if f.method != "" {
			f.data(make([]byte, 4)) // end mark
		}
		f.queue = append(f.queue, replication.BackupMessage{Kind: replication.BackupManifest})
		f.data(f.manifest)
		f.manifest = nil
	default:
		return replication.BackupMessage{}, io.EOF
	}
	return f.Next(ctx)
}

type floodConn struct{ *flood }

func (c floodConn) Close(context.Context) error { return nil }

func cpuTime() time.Duration {
	var r syscall.Rusage
	must(syscall.Getrusage(syscall.RUSAGE_SELF, &r))
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkTake is a backup without a server and without a store: reception,
// check, parts.
func BenchmarkTake(b *testing.B) {
	for _, text := range []string{"server-lz4", "none", "client-lz4", "client-zstd"} {
		b.Run(text, func(b *testing.B) {
			c, err := ParseCompression(text)
			must(err)
			size := int64(1 << 30)
			b.SetBytes(size)
			b.ReportAllocs()
			begun, peak := cpuTime(), uint64(0)
			for b.Loop() {
				f := newFlood(16, size/16)
				_, err := take(b.Context(), floodConn{f}, nil, arrived{archive.New(newForgetful(), archive.Options{})}, Options{Compress: c, TempDir: b.TempDir()})
				if err != nil {
					b.Fatal(err)
				}
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapSys)
			}
			b.ReportMetric(float64((cpuTime()-begun).Milliseconds())/float64(b.N), "cpu-ms/op")
			b.ReportMetric(float64(peak)/1e6, "heap-MB")
		})
	}
}
