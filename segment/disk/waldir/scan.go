package waldir

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/walferry/walferry/segment"
	"github.com/walferry/walferry/segment/disk"
)

// Newest is what a scan of the directory finds: where pg_receivewal goes on.
type Newest struct {
	// Found is false when no file is that of a segment that can be gone on
	// from. The other fields are zero then.
	Found bool
	// Name is the newest segment's. When it is Complete, the next byte is the
	// first of the segment behind it, else its own first one.
	Name     segment.Name
	Complete bool
}

// listing is the directory's names, sorted out.
type listing struct {
	names       []segment.Name // the newest first: by LSN, then by timeline
	forms       map[segment.Name]forms
	others      []fs.DirEntry // history files, and such as are being written
	temporaries []string      // ours, of a crash
}

// list reads the directory. Nothing is looked at but names.
func (d *FS) list() (listing, error) {
	entries, err := d.fs.ReadDir(d.dir)
	if err != nil {
		return listing{}, err
	}
	l := listing{forms: make(map[segment.Name]forms)}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		file := e.Name()
		if n, f, ok := parseFile(file); ok {
			if l.forms[n] == 0 {
				l.names = append(l.names, n)
			}
			l.forms[n] |= f.bit()
		} else if ownTemporary(file) {
			l.temporaries = append(l.temporaries, file)
		} else if isHistory(file) {
			l.others = append(l.others, e)
		}
	}
	slices.SortFunc(l.names, func(a, b segment.Name) int {
		return cmp.Or(cmp.Compare(b.Log, a.Log), cmp.Compare(b.Seg, a.Seg), cmp.Compare(b.Timeline, a.Timeline))
	})
	return l, nil
}

// found is a scan's result.
type found struct {
	Newest
	at int       // its place in listing.names
	id *identity // of the newest file that says one
}

// Scan looks for the segment to go on from, by the rules of FindStreamingStart
// in PostgreSQL's src/bin/pg_basebackup/pg_receivewal.c: the highest segment,
// then the highest timeline, then complete over partial. Complete files that
// have not a segment's size are warned of and skipped. It changes nothing, and
// looks into no more files than it must. What Remove hides counts, since it is
// there. Of several partials in a row the first is gone on from, not the last.
//
// Errors: the directory or a file that had to be looked at cannot be read; an
// .lz4 file that cannot be decoded, or a .gz file too short to be one, as with
// the original; a complete file of the right size that holds no WAL, or
// another segment's (segment.ErrPage), which the original does not notice.
func (d *FS) Scan() (Newest, error) {
	l, err := d.list()
	if err != nil {
		return Newest{}, fmt.Errorf("reading the directory %s: %w", d.dir, err)
	}
	w, err := d.scan(l)
	return w.Newest, err
}

// Newest returns what ReadDir found when the spool was last opened: where to go
// on. What was written since does not count, and an empty partial that the
// spool has removed does.
func (d *FS) Newest() Newest {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.newest
}

// scan finds the newest segment, and goes on, where that is an empty partial,
// to the newest file that says which cluster it is of.
func (d *FS) scan(l listing) (found, error) {
	var w found
	for i, n := range l.names {
		if n.Log == 0 && n.Seg == 0 {
			continue // PostgreSQL writes none, and it cannot win
		}
		_, id, ok, err := d.complete(n, l.forms[n], 0)
		if err != nil {
			return found{}, err
		}
		if partials := l.forms[n].these(true); !ok && len(partials) > 0 {
			if id, err = d.partialIdentity(n, partials); err != nil {
				return found{}, err
			}
			if !w.Found {
				w.Newest, w.at = Newest{Found: true, Name: n}, i
			}
		} else if ok && !w.Found {
			w.Newest, w.at = Newest{Found: true, Name: n, Complete: true}, i
		}
		if id != nil {
			w.id = id
			break
		}
	}
	w.goBack(l)
	return w, nil
}

// goBack goes on from the first of several partials in a row: a crash came while
// the segments before the newest waited for their seal, or were not on the disk
// yet. (The original has one at most: it seals each before it begins the next.)
func (w *found) goBack(l listing) {
	for w.Found && !w.Complete {
		before, ok := w.before()
		if set := l.forms[before]; !ok || set.these(true) == nil || set.these(false) != nil {
			return
		}
		w.Name, w.at = before, slices.Index(l.names, before)
	}
}

// before returns the segment before the newest on its timeline; ok is false
// where there is none, or where only the segment size, which is not known,
// would tell.
func (w *found) before() (n segment.Name, ok bool) {
	n = w.Name
	if w.id != nil && n.Check(w.id.size) == nil && n.Start(w.id.size) > 0 {
		return w.id.size.Name(n.Timeline, n.Start(w.id.size)-1), true
	}
	if n.Seg == 0 {
		return n, false
	}
	n.Seg--
	return n, true
}

// complete looks for a complete file of n that proves its size, which is
// size, or, where that is zero, the one in its first page. id is what the file
// says of its cluster, nil when size was given.
func (d *FS) complete(n segment.Name, set forms, size segment.Size) (f form, id *identity, ok bool, err error) {
	for _, f := range set.these(false) {
		if f.method == None {
			id, ok, err = d.plainSegment(n, size)
		} else {
			id, ok, err = d.packedSegment(n, f, size)
		}
		if err != nil || ok {
			return f, id, ok, err
		}
	}
	return form{}, nil, false, nil
}

// plainSegment checks a complete file that is not compressed.
func (d *FS) plainSegment(n segment.Name, size segment.Size) (id *identity, ok bool, err error) {
	file := n.String()
	fi, err := d.fs.Stat(d.path(file))
	if err != nil {
		return nil, false, err
	}
	wrong := func() (*identity, bool, error) {
		d.log.Warn(fmt.Sprintf("segment file %q has incorrect size %d, skipping", file, fi.Size()))
		return nil, false, nil
	}
	if size != 0 {
		if fi.Size() != int64(size) {
			return wrong()
		}
		return nil, true, nil
	}
	if segment.Size(fi.Size()).Check() != nil {
		return wrong()
	}
	page, err := d.firstPage(n, form{})
	if err != nil {
		return nil, false, err
	}
	if id, err = identityOf(n, page); err != nil {
		return nil, false, &FileError{fmt.Sprintf("segment file %q cannot be gone on from", d.path(file)), err}
	}
	if int64(id.size) != fi.Size() {
		return wrong()
	}
	return id, true, nil
}

// packedSegment checks a complete file that is compressed. The original trusts
// the last four bytes of a .gz file; where it was killed they are not the
// length (it reopens a file without cutting it off), so that it is decoded
// here like any other.
func (d *FS) packedSegment(n segment.Name, f form, size segment.Size) (id *identity, ok bool, err error) {
	file := f.name(n)
	if err := d.longEnough(file, f.method); err != nil {
		return nil, false, err
	}
	length := int64(size)
	var noPage error
	if size == 0 {
		page, err := d.firstPage(n, f)
		if err != nil {
			return nil, false, err
		}
		length = int64(segment.MaxSize)
		if id, noPage = identityOf(n, page); noPage == nil {
			length = int64(id.size)
		}
	}
	have, end, err := d.count(file, f.method, length)
	switch {
	case err != nil:
		return nil, false, err
	case f.method == LZ4 && !errors.Is(end, io.EOF) && !errors.Is(end, io.ErrUnexpectedEOF) && !errors.Is(end, errLonger):
		return nil, false, &FileError{fmt.Sprintf("could not decompress file %q", d.path(file)), end}
	case errors.Is(end, errLonger):
		have++ // at least
	case f.method == Gzip && have == length && !errors.Is(end, io.EOF):
		d.log.Warn(fmt.Sprintf("compressed segment file %q is damaged, skipping", file), "error", end)
		return nil, false, nil
	}
	if noPage != nil && segment.Size(have).Check() == nil {
		return nil, false, &FileError{fmt.Sprintf("compressed segment file %q cannot be gone on from", d.path(file)), noPage}
	}
	if noPage != nil || have != length {
		d.log.Warn(fmt.Sprintf("compressed segment file %q has incorrect uncompressed size %d, skipping", file, have))
		return nil, false, nil
	}
	return id, true, nil
}

// longEnough checks that a .gz file has a length at its end.
func (d *FS) longEnough(file string, m Method) error {
	if m != Gzip {
		return nil
	}
	fi, err := d.fs.Stat(d.path(file))
	if err == nil && fi.Size() < 4 {
		// The original's lseek, to where the length would begin, says so.
		err = &FileError{fmt.Sprintf("could not seek in compressed file %q: Invalid argument", d.path(file)), nil}
	}
	return err
}

// count decodes a file, of which length bytes are expected, and says how many
// there are and why not more. Those of a segment that is read from memory are
// kept for whoever reads it next.
func (d *FS) count(file string, m Method, length int64) (have int64, end, err error) {
	if length > inMemory {
		return d.countOnly(file, m, length)
	}
	h, err := d.decode(file, m, false, length)
	if err != nil {
		return 0, nil, err
	}
	have, end, err = h.c.whole()
	if err != nil {
		err = fmt.Errorf("reading %s: %w", file, err)
	}
	return have, end, errors.Join(err, h.Close())
}

// countOnly is count for so many bytes that they are not kept.
func (d *FS) countOnly(file string, m Method, length int64) (have int64, end, err error) {
	f, err := d.fs.Open(d.path(file), false)
	if err != nil {
		return 0, nil, err
	}
	src := &source{f: f}
	r, end := newDecoder(m, src)
	for buf := make([]byte, step); end == nil; {
		var n int
		if n, end = r.Read(buf); int64(n) > length-have {
			n, end = int(length-have), errLonger
		}
		have += int64(n)
	}
	if err = errors.Join(src.err, f.Close()); err != nil {
		err = fmt.Errorf("reading %s: %w", file, err)
	}
	return have, end, err
}

// firstPage returns the header of the first page in n's file, as much of it as
// there is and can be decoded.
func (d *FS) firstPage(n segment.Name, f form) (page []byte, err error) {
	file, err := d.fs.Open(d.path(f.name(n)), false)
	if err != nil {
		return nil, err
	}
	src := &source{f: file}
	var r io.Reader = src
	if f.method != None {
		if r, err = newDecoder(f.method, src); err != nil {
			r = nil
		}
	}
	page = make([]byte, longHeader)
	k := 0
	if r != nil {
		k, _ = io.ReadFull(r, page) // why it ends there is told by src.err, or is damage
	}
	if err = errors.Join(src.err, file.Close()); err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.name(n), err)
	}
	return page[:k], nil
}

// longHeader is the length of the header of a segment's first page.
const longHeader = 40

// identityOf reads what the first page of n says.
func identityOf(n segment.Name, page []byte) (*identity, error) {
	h, err := segment.ParseLongHeader(page)
	if err != nil {
		return nil, err
	}
	if err := n.Check(h.SegmentSize); err != nil {
		return nil, fmt.Errorf("%w: %w", segment.ErrPage, err)
	}
	if start := n.Start(h.SegmentSize); h.PageAddr != start {
		return nil, fmt.Errorf("%w: its first page is that of %s, not of %s", segment.ErrPage, h.PageAddr, start)
	}
	return &identity{h.SystemIdentifier, h.SegmentSize}, nil
}

// partialIdentity returns what the first page of a partial says; nil when none
// is there yet, or it is torn.
func (d *FS) partialIdentity(n segment.Name, partials []form) (*identity, error) {
	for _, f := range partials {
		page, err := d.firstPage(n, f)
		if err != nil {
			return nil, err
		}
		if id, err := identityOf(n, page); err == nil {
			return id, nil
		}
	}
	return nil, nil
}

// view returns the names that the spool sees, and in which form each is there.
func (d *FS) view(l listing, w found) (map[string]form, error) {
	shown := make(map[string]form)
	if w.id == nil {
		return shown, nil // nothing says which cluster's these are: they are empty
	}
	size := w.id.size
	before := size.Name(w.Name.Timeline, max(w.Name.Start(size), 1)-1)
	newest := make(map[segment.Timeline]bool) // timelines whose newest segment was passed
	all, run := d.o.All, w.Name.Start(size)
	for _, n := range l.names[w.at:] {
		if n.Check(size) != nil {
			continue
		}
		last := !newest[n.Timeline]
		newest[n.Timeline] = true
		near := n.Log == w.Name.Log && n.Seg == w.Name.Seg || n.Log == before.Log && n.Seg == before.Seg
		complete, partials := len(l.forms[n].these(false)) > 0, l.forms[n].these(true)
		if all = all && n.End(size) >= run; all && complete {
			run = n.Start(size)
		}
		if complete && (near || all) {
			if d.hides(n) {
				continue
			}
			f, ok, err := d.sound(n, l.forms[n], size, near || len(partials) > 0)
			if err != nil {
				return nil, err
			}
			if ok {
				shown[n.String()] = f
				continue
			}
		}
		if len(partials) == 0 || !near && (!last || complete || n.Timeline >= w.Name.Timeline) {
			continue
		}
		f, err := d.best(n, partials, size)
		if err != nil {
			return nil, err
		}
		shown[n.String()+partialSuffix] = f
	}
	return shown, nil
}

// hides reports whether the spool has no need of a complete segment.
func (d *FS) hides(n segment.Name) bool { return d.o.Hide != nil && d.o.Hide(n) }

// sound is complete for a segment that did not win. One that is not near the
// newest is not decoded: a .gz file that ends with the right length, and an
// .lz4 file, are believed until they are read.
func (d *FS) sound(n segment.Name, set forms, size segment.Size, near bool) (f form, ok bool, err error) {
	if !near {
		for _, f := range set.these(false) {
			if f.method == None {
				continue
			}
			if ok, err := d.likely(n, f, size); ok || err != nil {
				return f, ok, err
			}
		}
	}
	f, _, ok, err = d.complete(n, set, size)
	return f, ok, err
}

// likely reports whether a compressed file is what it should be, as far as its
// end tells.
func (d *FS) likely(n segment.Name, f form, size segment.Size) (ok bool, err error) {
	if f.method == LZ4 {
		return true, nil
	}
	file, err := d.fs.Open(d.path(f.name(n)), false)
	if err != nil {
		return false, err
	}
	end, err := file.Size()
	var length [4]byte
	if err == nil && end >= 4 {
		err = readFull(file, length[:], end-4)
	}
	return uint64(binary.LittleEndian.Uint32(length[:])) == uint64(size), errors.Join(err, file.Close())
}

// best returns the partial that has most, and of equals the first.
func (d *FS) best(n segment.Name, partials []form, size segment.Size) (form, error) {
	if len(partials) == 1 {
		return partials[0], nil
	}
	best, most := partials[0], int64(-1)
	for _, f := range partials {
		c, err := d.content(n, f, size)
		if err != nil {
			return form{}, err
		}
		have, err := c.extent()
		if err := errors.Join(err, c.Close()); err != nil {
			return form{}, fmt.Errorf("reading %s: %w", f.name(n), err)
		}
		if have > most {
			best, most = f, have
		}
	}
	return best, nil
}

// content opens a file for its plain bytes.
func (d *FS) content(n segment.Name, f form, size segment.Size) (content, error) {
	if f.method != None {
		return d.decode(f.name(n), f.method, f.partial, int64(size))
	}
	file, err := d.fs.Open(d.path(f.name(n)), false)
	if err != nil {
		return nil, err
	}
	return plain{file}, nil
}

// tidy removes what a crash of ours left, and partials that another file makes
// needless: pg_receivewal leaves those for ever when its method changes. It takes
// them out of l.
func (d *FS) tidy(l listing, id *identity) error {
	for _, file := range l.temporaries {
		if err := d.fs.Remove(d.path(file)); err != nil {
			return err
		}
	}
	if id == nil {
		return nil
	}
	for _, n := range l.names {
		set := l.forms[n]
		if partials := set.these(true); len(partials) == 0 || len(partials) == 1 && len(set.these(false)) == 0 || n.Check(id.size) != nil {
			continue
		}
		left, err := d.tidySegment(n, set, id.size)
		if err != nil {
			return err
		}
		l.forms[n] = left
	}
	return nil
}

// tidySegment removes those partials of n whose bytes its complete file has as
// well, or the partial that has most, and returns what is left.
func (d *FS) tidySegment(n segment.Name, set forms, size segment.Size) (left forms, err error) {
	partials := set.these(true)
	f, _, ok, err := d.complete(n, set, size)
	if err == nil && !ok {
		f, err = d.best(n, partials, size)
	}
	if err != nil || len(partials) == 1 && !ok {
		return set, err
	}
	c, err := d.content(n, f, size)
	if err != nil {
		return set, err
	}
	err = d.makeDurable(f.name(n))
	for _, p := range partials {
		if err != nil || p == f {
			continue
		}
		var removed bool
		if removed, err = d.removeIfHeld(n, p, c, f.name(n), size); removed {
			set &^= p.bit()
		}
	}
	return set, errors.Join(err, c.Close())
}

// makeDurable syncs a file and its name, whoever wrote it.
func (d *FS) makeDurable(file string) error {
	if d.o.NoSync {
		return nil
	}
	f, err := d.fs.Open(d.path(file), false)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return d.fs.SyncDir(d.dir)
}

// removeIfHeld removes a partial whose bytes are the first of c, which is
// durable.
func (d *FS) removeIfHeld(n segment.Name, p form, c io.ReaderAt, by string, size segment.Size) (removed bool, err error) {
	held, err := d.isPrefix(n, p, c, size)
	if err != nil {
		return false, err
	}
	if !held {
		d.log.Warn("a partial that has other bytes than the segment's other file is left alone", "file", p.name(n), "other", by)
		return false, nil
	}
	d.log.Info("removing a partial whose bytes another file of the segment has", "file", p.name(n), "other", by)
	return true, d.remove(p.name(n))
}

// isPrefix reports whether all that a partial has is the beginning of c.
func (d *FS) isPrefix(n segment.Name, p form, c io.ReaderAt, size segment.Size) (bool, error) {
	part, err := d.content(n, p, size)
	if err != nil {
		return false, err
	}
	have, err := part.extent()
	if err == nil && have > int64(size) {
		return false, part.Close()
	}
	if err == nil {
		err = eachPart(part, 0, have, func(b []byte, at int64) error { return same(c, b, at) })
	}
	differs := errors.Is(err, errDiffers)
	if differs {
		err = nil
	}
	return !differs, errors.Join(err, part.Close())
}

var errDiffers = errors.New("other bytes")

// remove removes a file of the directory.
func (d *FS) remove(file string) error {
	d.mu.Lock()
	d.forget(file)
	d.mu.Unlock()
	return d.fs.Remove(d.path(file))
}

var _ content = plain{}
var _ disk.File = (*handle)(nil)
