package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/segment"
)

// Object is an open object of wal_005/. Read gives the decoded bytes: only
// io.EOF says that they were all there and that the checksums held. Content
// that cannot be decoded matches codec.ErrDamaged; any other error is the
// store's. The caller closes it.
type Object struct {
	Key string // in the store
	Ext string // what follows the name: one of codec.Readable

	content io.ReadCloser // decodes body
	body    io.ReadCloser
}

// Read implements io.Reader.
func (o *Object) Read(p []byte) (int, error) { return o.content.Read(p) }

// Close frees the decoder and the store's connection.
func (o *Object) Close() error { return errors.Join(o.content.Close(), o.body.Close()) }

// Open opens the object of that name in wal_005/ ("000000010000000000000002",
// "00000002.history", …; without extension) under the first extension that is
// there, the archive's own codec first when it is known. ErrNotFound when the
// store answered for each form that there is none. One GET per form.
func (a *Archive) Open(ctx context.Context, name string) (*Object, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	for _, ext := range a.lookupOrder() {
		o, err := a.open(ctx, walDir+name+ext, ext)
		if errors.Is(err, objstore.ErrNotFound) {
			continue
		}
		return o, err
	}
	return nil, fmt.Errorf("%s: %w", name, ErrNotFound)
}

// OpenKey opens an object by its whole key, one of those that Forms returns.
// ErrNotFound when the store answered that there is none.
func (a *Archive) OpenKey(ctx context.Context, key string) (*Object, error) {
	ext, ok := extOf(key)
	if !ok || !strings.HasPrefix(key, walDir) {
		return nil, fmt.Errorf("opening %s: not an object of wal_005/ that can be decoded", key)
	}
	o, err := a.open(ctx, key, ext)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil, fmt.Errorf("%s: %w", key, ErrNotFound)
	}
	return o, err
}

func (a *Archive) open(ctx context.Context, key, ext string) (*Object, error) {
	body, _, err := a.store.Get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", key, err)
	}
	content, err := codec.NewReader(body, ext)
	if err != nil {
		discard(body)
		return nil, fmt.Errorf("opening %s: %w", key, err)
	}
	return &Object{Key: key, Ext: ext, content: content, body: body}, nil
}

func (a *Archive) lookupOrder() []string {
	order := codec.Readable()
	id := a.identity.Load()
	if id == nil {
		return order
	}
	own := codec.Method{Name: id.WALCodec}.Ext()
	return append([]string{own}, slices.DeleteFunc(order, func(ext string) bool { return ext == own })...)
}

// extOf returns the extension of a segment's, partial's or history file's key;
// ok is false when it is none that can be decoded.
func extOf(key string) (ext string, ok bool) {
	if _, ext, k := walKey(key); k != other {
		return ext, codec.CanRead(ext)
	}
	name, _ := strings.CutPrefix(key, walDir)
	if i := strings.IndexByte(name, '.'); i >= 0 {
		if j := strings.IndexByte(name[i+1:], '.'); j >= 0 {
			ext = name[i+1+j:]
		}
	}
	return ext, codec.CanRead(ext)
}

// Forms lists the keys of all objects of that very name in wal_005/, also
// under extensions that cannot be decoded, in bytewise order. A segment's
// partial and its backup labels are other names.
func (a *Archive) Forms(ctx context.Context, name string) ([]string, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	var keys []string
	for info, err := range a.store.List(ctx, objstore.ListOptions{Prefix: walDir + name}) {
		if err != nil {
			return nil, fmt.Errorf("listing the forms of %s: %w", name, err)
		}
		ext := info.Key[len(walDir)+len(name):]
		_, otherName := cutPartial(ext)
		if ext == "" || ext[0] == '.' && !otherName && !isBackupLabel(ext) {
			keys = append(keys, info.Key)
		}
	}
	return keys, nil
}

// NextSegment returns the first segment behind after on the same timeline,
// whole or partial, whatever its extension: the proof that a segment which is
// absent does not end the archive. ok is false when the store answered that
// there is none.
func (a *Archive) NextSegment(ctx context.Context, after segment.Name) (n segment.Name, ok bool, err error) {
	for info, err := range a.keys(ctx, after.Timeline, walDir+after.String()+behindName, probe) {
		if err != nil {
			return segment.Name{}, false, fmt.Errorf("looking for WAL behind %s: %w", after, err)
		}
		if n, _, k := walKey(info.Key); k != other {
			return n, true, nil
		}
	}
	return segment.Name{}, false, nil
}

// maxHistory bounds a history file: a line of some dozen bytes per timeline.
const maxHistory = 1 << 20

// History returns timeline t's history file. ErrNotFound only when the store
// answered for every form that there is none. Content that is damaged matches
// codec.ErrDamaged; its meaning is not checked.
func (a *Archive) History(ctx context.Context, t segment.Timeline) (content []byte, err error) {
	o, err := a.Open(ctx, t.HistoryName())
	if err != nil {
		return nil, err
	}
	defer discard(o)
	content, err = io.ReadAll(io.LimitReader(o, maxHistory+1))
	if err == nil && len(content) > maxHistory {
		err = fmt.Errorf("%w: more than %d bytes", codec.ErrDamaged, maxHistory)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", o.Key, err)
	}
	return content, nil
}
