package basebackup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/replication"
)

// checkBuffer is how much is checked at a time, in bytes: a block of the lz4
// frames that PostgreSQL writes, which is then decoded in place and is in the
// processor's cache when it is checked.
const checkBuffer = 256 << 10

// encodeAtOnce is how many pieces are encoded at a time. To encode one takes
// longer than all else that is done with it together, and the server, which
// waits for us, is often alone on its processor.
const encodeAtOnce = 2

// inflow is an archive of the server's that is being received. Its bytes are
// written to in; a goroutine beside follows them, decodes them, checks the
// files, and where the archive is not stored as it was sent, encodes it again.
// Where the receiver does that there is no goroutine.
type inflow struct {
	in         io.Writer
	end        func() error // of in
	giveUp     func()       // ends what in has running, once the context of the backup has ended; nil: nothing
	object     *object
	scan       scanner
	tablespace uint32
	done       chan struct{} // closed when the archive was checked, and all of it is in the object
}

// Write takes what was received. p is copied.
func (f *inflow) Write(p []byte) (int, error) { return f.in.Write(p) }

// abandon ends what the archive has running: beside the crew, whose context has
// ended, and before it is waited for.
func (f *inflow) abandon() {
	if f.giveUp != nil {
		f.giveUp()
	}
}

// begin begins the archive that m announces.
func (t *taking) begin(m replication.BackupMessage) (*inflow, error) {
	sent := path.Ext(m.Name)
	if sent == ".tar" {
		sent = ""
	}
	want, _ := t.asked.server()
	if sent != (codec.Method{Name: want}).Ext() {
		return nil, fmt.Errorf("%w: an archive called %q, where compression %q was asked for", replication.ErrProtocol, m.Name, want)
	}
	method := t.asked.how()
	t.archives++
	f := &inflow{tablespace: m.Tablespace.OID, done: make(chan struct{})}
	expected := m.Tablespace.Size
	if method.Name != codec.None {
		expected /= 2 // what compresses worse gets larger parts in time
	}
	f.object = t.newObject(fmt.Sprintf("part_%03d.tar%s", t.archives, method.Ext()), expected, t.o.MemoryPart, slots)
	f.scan = scanner{file: t.seen.add}
	if f.tablespace != 0 {
		f.scan.folder = "pg_tblspc/" + strconv.FormatUint(uint64(f.tablespace), 10)
	}
	if sent == method.Ext() && f.scan.folder == "" {
		cut := &f.object.cutter
		cut.follower = newFollower(t.ctx)
		f.in, f.end = cut, f.object.end
		t.crew.start(func() error { return f.check(cut.follower, sent, t.checkBuffer()) })
		return f, nil
	}
	if t.receiverEncodes() {
		return f, f.encodeReceived(t)
	}
	in := newPipe(t.ctx, t.pieces)
	f.in, f.end = in, in.end
	if sent == "" {
		t.crew.start(func() error { return f.encode(in.next, in.back, func() error { return nil }, t.encoders) })
		return f, nil
	}
	buf := t.encodeBuffer()
	t.crew.start(func() error {
		content, err := codec.NewReader(in, sent)
		if err != nil {
			return err
		}
		return f.encode(func() ([]byte, error) {
			n, err := fill(content, buf)
			return buf[:n], err
		}, nil, content.Close, t.encoders)
	})
	return f, nil
}

// receiverEncodes tells whether what the server sends is encoded by who receives
// it, and by others only what takes long. A server at the other end of a Unix
// socket works on our processors, where it has the first claim, and waits as
// soon as the little that such a socket holds is not read. With a goroutine
// that reads and one that checks, both are in each other's way, and the server
// in both's: on two processors it was a quarter slower than with none.
func (t *taking) receiverEncodes() bool {
	sent, _ := t.asked.server()
	return sent == "" && t.asked.how().Name == codec.LZ4 && t.server.Local()
}

// encodeReceived makes in an encoder.
func (f *inflow) encodeReceived(t *taking) error {
	encoder, err := f.encoder(t.encoders, t.pieces.back)
	if err != nil {
		return err
	}
	in := &packer{ctx: t.ctx, pieces: t.pieces, deliver: func(piece []byte) error {
		if err := f.scan.next(piece); err != nil {
			return f.failed(err)
		}
		return nil
	}}
	f.in, f.giveUp = in, encoder.GiveUp
	f.end = func() error {
		if err := in.flush(); err != nil {
			return err
		}
		if err := f.scan.end(); err != nil {
			return f.failed(err)
		}
		return f.seal(encoder)
	}
	return nil
}

// check reads the archive in passing.
func (f *inflow) check(in io.Reader, ext string, buf []byte) error {
	content, err := codec.NewReader(in, ext)
	if err != nil {
		return err
	}
	err = f.scan.run(content, buf)
	if err := errors.Join(err, content.Close()); err != nil {
		return f.failed(err)
	}
	close(f.done)
	return nil
}

// encode takes the archive from next, and when it has all closes where that
// comes from, and writes it to its object in another form. What next gives goes
// back when it is encoded; without a back it is next's again at its next call.
func (f *inflow) encode(next func() ([]byte, error), back func([]byte), closeInput func() error, encoders *codec.Encoders) error {
	encoder, err := f.encoder(encoders, back)
	if err != nil {
		return errors.Join(err, closeInput())
	}
	defer encoder.GiveUp()
	if err := errors.Join(f.scan.all(next), closeInput()); err != nil {
		return f.failed(err)
	}
	return f.seal(encoder)
}

// encoder returns one of the object's, to which the scanner passes all it reads.
func (f *inflow) encoder(encoders *codec.Encoders, back func([]byte)) (*codec.Stream, error) {
	encoder, err := encoders.NewStream(f.object)
	if err != nil {
		return nil, err
	}
	f.scan.pass = func(p []byte) error {
		if back != nil {
			return encoder.Lend(p, back)
		}
		_, err := encoder.Write(p)
		return err
	}
	return encoder, nil
}

// seal ends the object behind an archive that was checked. The encoder is closed
// on this way only: an object that lacks the end of its frame is not taken for
// whole by anybody.
func (f *inflow) seal(encoder *codec.Stream) error {
	if err := encoder.Close(); err != nil {
		return f.failed(err)
	}
	if err := f.object.end(); err != nil {
		return err
	}
	close(f.done)
	return nil
}

func (f *inflow) failed(err error) error {
	return fmt.Errorf("archive of %s: %w", f.source(), err)
}

func (f *inflow) source() string {
	if f.tablespace == 0 {
		return "the data directory"
	}
	return "tablespace " + strings.TrimPrefix(f.scan.folder, "pg_tblspc/")
}

// finish waits until the archive was checked and is stored.
func (f *inflow) finish(ctx context.Context) (archive.BackupPart, error) {
	if err := f.end(); err != nil {
		return archive.BackupPart{}, err
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		return archive.BackupPart{}, context.Cause(ctx)
	}
	if err := f.object.complete(); err != nil {
		return archive.BackupPart{}, err
	}
	part := f.object.facts()
	part.Uncompressed, part.Tablespace, part.Files = f.scan.bytes, f.tablespace, f.scan.files
	return part, nil
}
