package restore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/segment"
)

const (
	testSize   = segment.MinSize
	testSystem = uint64(7710923324468496309)
	foreign    = uint64(7710923324468496310)
)

// errNetwork is a failure from which nothing can be concluded.
var errNetwork = errors.New("connection reset by peer")

// fakeArchive is an archive in memory that fails on demand.
type fakeArchive struct {
	*archive.Archive
	t     testing.TB
	store *fakeStore

	mu    sync.Mutex
	fail  map[string]error // a call fails, by its method
	calls int              // of all methods
	mute  bool             // it does not tell whose it is
}

// fakeStore breaks off in the middle of some objects.
type fakeStore struct {
	*mem.Store
	broken map[string]error // by key
}

func (s *fakeStore) Get(ctx context.Context, key string) (io.ReadCloser, objstore.Info, error) {
	r, info, err := s.Store.Get(ctx, key)
	if cause := s.broken[key]; err == nil && cause != nil {
		return io.NopCloser(io.MultiReader(io.LimitReader(r, info.Size/2), &brokenReader{cause})), info, nil
	}
	return r, info, err
}

type brokenReader struct{ err error }

func (r *brokenReader) Read([]byte) (int, error) { return 0, r.err }

func newFake(t testing.TB) *fakeArchive {
	store := &fakeStore{mem.New(), map[string]error{}}
	a := &fakeArchive{Archive: archive.New(store, archive.Options{}), t: t, store: store, fail: map[string]error{}}
	a.claim(testSystem)
	return a
}

const identityKey = "walferry_005/identity.json"

// claim makes the archive that of another cluster.
func (a *fakeArchive) claim(system uint64) {
	a.t.Helper()
	a.unclaim()
	if _, err := a.Claim(context.Background(), archive.Identity{SystemIdentifier: system, SegmentSize: testSize}); err != nil {
		a.t.Fatal(err)
	}
	a.Archive = archive.New(a.store, archive.Options{})
}

// unclaim makes the archive one that only WAL-G wrote to.
func (a *fakeArchive) unclaim() {
	a.t.Helper()
	if err := a.store.Delete(context.Background(), identityKey); err != nil {
		a.t.Fatal(err)
	}
}

// put stores content, encoded as its key's extension says.
func (a *fakeArchive) put(key string, content []byte) {
	a.t.Helper()
	m, ok := codec.ByExt(filepath.Ext(key))
	if !ok || len(filepath.Ext(key)) > 4 {
		m = codec.Method{Name: codec.None}
	}
	frame, err := m.Encode(content)
	if err != nil {
		a.t.Fatal(err)
	}
	defer frame.Release()
	a.putRaw(key, frame)
}

func (a *fakeArchive) putRaw(key string, stored objstore.Body) {
	a.t.Helper()
	if err := a.store.Put(context.Background(), "wal_005/"+key, stored); err != nil {
		a.t.Fatal(err)
	}
}

// damage cuts an object's end off.
func (a *fakeArchive) damage(key string) { a.t.Helper(); a.damageAt("wal_005/" + key) }

func (a *fakeArchive) damageAt(key string) {
	a.t.Helper()
	r, _, err := a.store.Get(context.Background(), key)
	if err != nil {
		a.t.Fatal(err)
	}
	stored, err := io.ReadAll(r)
	if err != nil {
		a.t.Fatal(err)
	}
	if err := a.store.Put(context.Background(), key, objstore.Bytes(stored[:len(stored)-3])); err != nil {
		a.t.Fatal(err)
	}
}

// tail stores the bytes [start, end) of a segment as a tail object, and returns
// its key.
func (a *fakeArchive) tail(n segment.Name, content []byte, start, end int) string {
	a.t.Helper()
	m := codec.Method{Name: codec.LZ4}
	t := archive.Tail{Segment: n, Start: uint32(start), End: uint32(end), CRC: crc32.Checksum(content[:end], crc32.MakeTable(crc32.Castagnoli))}
	frame, err := m.Encode(content[start:end])
	if err != nil {
		a.t.Fatal(err)
	}
	defer frame.Release()
	if err := a.PutTail(context.Background(), t, m, frame); err != nil {
		a.t.Fatal(err)
	}
	return "wal_tail_005/" + t.String() + m.Ext()
}

func (a *fakeArchive) call(method string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls++
	return a.fail[method]
}

// mend makes a method work again.
func (a *fakeArchive) mend(method string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.fail, method)
}

func (a *fakeArchive) Open(ctx context.Context, name string) (*archive.Object, error) {
	if err := a.call("Open"); err != nil {
		return nil, err
	}
	return a.Archive.Open(ctx, name)
}

func (a *fakeArchive) OpenKey(ctx context.Context, key string) (*archive.Object, error) {
	if err := a.call("OpenKey"); err != nil {
		return nil, err
	}
	return a.Archive.OpenKey(ctx, key)
}

func (a *fakeArchive) Forms(ctx context.Context, name string) ([]string, error) {
	if err := a.call("Forms"); err != nil {
		return nil, err
	}
	return a.Archive.Forms(ctx, name)
}

func (a *fakeArchive) NextSegment(ctx context.Context, after segment.Name) (segment.Name, bool, error) {
	if err := a.call("NextSegment"); err != nil {
		return segment.Name{}, false, err
	}
	return a.Archive.NextSegment(ctx, after)
}

func (a *fakeArchive) NextTail(ctx context.Context, after segment.Name) (segment.Name, bool, error) {
	if err := a.call("NextTail"); err != nil {
		return segment.Name{}, false, err
	}
	return a.Archive.NextTail(ctx, after)
}

func (a *fakeArchive) Gaps(ctx context.Context) (segment.Gaps, error) {
	if err := a.call("Gaps"); err != nil {
		return nil, err
	}
	return a.Archive.Gaps(ctx)
}

// gap records one.
func (a *fakeArchive) gap(t segment.Timeline, start, end segment.LSN) {
	a.t.Helper()
	g := archive.RecordedGap{Gap: segment.Gap{Timeline: t, Start: start, End: end}, RecordedAt: time.Unix(1_795_000_000, 0), SystemIdentifier: testSystem}
	if err := a.PutGap(context.Background(), g); err != nil {
		a.t.Fatal(err)
	}
}

func (a *fakeArchive) Tails(ctx context.Context, n segment.Name) ([]archive.StoredTail, error) {
	if err := a.call("Tails"); err != nil {
		return nil, err
	}
	return a.Archive.Tails(ctx, n)
}

func (a *fakeArchive) AssembleTails(ctx context.Context, n segment.Name, size segment.Size, into archive.Patch) (end, crc uint32, err error) {
	if err := a.call("AssembleTails"); err != nil {
		return 0, 0, err
	}
	return a.Archive.AssembleTails(ctx, n, size, into)
}

func (a *fakeArchive) Identity(ctx context.Context) (archive.Identity, error) {
	if err := a.call("Identity"); err != nil {
		return archive.Identity{}, err
	}
	return a.Archive.Identity(ctx)
}

func (a *fakeArchive) Recognise(ctx context.Context) (archive.Identity, bool, error) {
	if err := a.call("Recognise"); err != nil {
		return archive.Identity{}, false, err
	}
	if a.mute {
		return archive.Identity{SegmentSize: testSize}, false, nil
	}
	return a.Archive.Recognise(ctx)
}

// name returns the name of the n-th segment of timeline t.
func name(t segment.Timeline, n int) segment.Name {
	return testSize.Name(t, segment.LSN(n)*segment.LSN(testSize))
}

// wal returns a segment of n's name in which the first used bytes are WAL of
// its timeline, each page with its header, and zeros follow.
func wal(n segment.Name, used int) []byte { return walOf(n, n.Timeline, testSystem, used) }

func walOf(n segment.Name, t segment.Timeline, system uint64, used int) []byte {
	b := make([]byte, testSize)
	le := binary.LittleEndian
	for at := 0; at < used; at += segment.PageSize {
		page := b[at : at+segment.PageSize]
		for i := range page {
			page[i] = byte(i%251) + 1
		}
		info := uint16(0)
		if at == 0 {
			info = 2 // a long header
			le.PutUint64(page[24:], system)
			le.PutUint32(page[32:], uint32(testSize))
			le.PutUint32(page[36:], segment.PageSize)
		}
		le.PutUint16(page, 0xD110)
		le.PutUint16(page[2:], info)
		le.PutUint32(page[4:], uint32(t))
		le.PutUint64(page[8:], uint64(n.Start(testSize))+uint64(at))
		le.PutUint32(page[16:], 0)
		le.PutUint32(page[20:], 0)
	}
	clear(b[min(used, len(b)):])
	return b
}

// fixture is a data directory, an archive, and a log.
type fixture struct {
	t       *testing.T
	dir     string
	target  string
	archive *fakeArchive
	options Options
	log     *strings.Builder
	files   files // nil: the host's
}

func newFixture(t *testing.T, m Mode) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: t.TempDir(), archive: newFake(t), log: &strings.Builder{}}
	f.target = filepath.Join(f.dir, "pg_wal", "RECOVERYXLOG")
	if err := os.Chmod(f.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f.mkdir("pg_wal")
	f.mkdir("global")
	f.write("PG_VERSION", []byte("15\n"))
	control := binary.NativeEndian.AppendUint64(nil, testSystem)
	control = binary.NativeEndian.AppendUint32(control, 1300)
	f.write("global/pg_control", append(control, make([]byte, 500)...))
	f.options = Options{
		Open:  func(context.Context) (Archive, error) { return f.archive, nil },
		Place: Place{DataDir: f.dir, Mode: m},
		Log:   slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	return f
}

func (f *fixture) mkdir(name string) {
	f.t.Helper()
	if err := os.Mkdir(filepath.Join(f.dir, name), 0o700); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) write(name string, content []byte) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), content, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// history puts a history file into pg_wal: ancestors as "1:0/300000".
func (f *fixture) history(t segment.Timeline, ancestors ...string) {
	f.t.Helper()
	f.write("pg_wal/"+t.HistoryName(), historyOf(ancestors...))
}

func historyOf(ancestors ...string) []byte {
	var b strings.Builder
	for _, a := range ancestors {
		t, at, _ := strings.Cut(a, ":")
		fmt.Fprintf(&b, "%s\t%s\tno recovery target specified\n", t, at)
	}
	return []byte(b.String())
}

// server writes a postmaster.pid of a server with that status.
func (f *fixture) server(status string) {
	f.t.Helper()
	f.write("postmaster.pid", fmt.Appendf(nil, "%d\n%s\n1\n5432\n/tmp\nlocalhost\n 1 2\n%-8s\n", os.Getpid(), f.dir, status))
}

func (f *fixture) put(key string, content []byte) { f.t.Helper(); f.archive.put(key, content) }

// fetch runs one call of restore_command.
func (f *fixture) fetch(ctx context.Context, file string) error {
	f.t.Helper()
	// As the server does before each call.
	if err := os.Remove(f.target); err != nil && !errors.Is(err, os.ErrNotExist) {
		f.t.Fatal(err)
	}
	fetcher := NewFetcher(f.options)
	if f.files != nil {
		fetcher.files = f.files
	}
	return fetcher.Fetch(ctx, file, f.target)
}

// content returns what was delivered; nil without a file.
func (f *fixture) content() []byte {
	f.t.Helper()
	b, err := os.ReadFile(f.target)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.t.Fatal(err)
	}
	return b
}

// leftovers returns the temporary files.
func (f *fixture) leftovers() []string {
	f.t.Helper()
	names, err := filepath.Glob(filepath.Join(f.dir, "pg_wal", temporaryPrefix+"*"))
	if err != nil {
		f.t.Fatal(err)
	}
	return names
}
