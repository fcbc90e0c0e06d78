package replication

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/segment"
)

// row builds a DataRow; "null" is null.
func row(values ...string) []byte {
	body := binary.BigEndian.AppendUint16(nil, uint16(len(values)))
	for _, v := range values {
		if v == "null" {
			body = binary.BigEndian.AppendUint32(body, 1<<32-1)
			continue
		}
		body = binary.BigEndian.AppendUint32(body, uint32(len(v)))
		body = append(body, v...)
	}
	return message('D', body...)
}

func tagged(tag string) []byte    { return message('C', append([]byte(tag), 0)...) }
func copyData(text string) []byte { return message('d', []byte(text)...) }

// theError builds an ErrorResponse or NoticeResponse.
func theError(kind byte, severity, state, routine string) []byte {
	var body []byte
	for _, f := range []string{"S" + severity, "V" + severity, "C" + state, "Mwords", "R" + routine} {
		body = append(append(body, f...), 0)
	}
	return message(kind, append(body, 0)...)
}

// wholeBackup is a backup as it comes over the wire, message by message.
func wholeBackup(typed bool) [][]byte {
	content := bytes.Repeat([]byte("content "), 1000)
	all := [][]byte{
		message('T', 0, 0), theError('N', "NOTICE", "00000", "x"), row("0/2000028", "1"), tagged("SELECT"),
		message('T', 0, 0), row("16384", "/s", "10"), row("null", "null", "null"), tagged("SELECT"),
	}
	if typed {
		all = append(all, message('H', 0, 0, 0), copyData("n16384.tar\x00/s\x00"), copyData("d"+string(content)), theError('N', "WARNING", "01000", "sendFile"),
			copyData("p\x00\x00\x00\x00\x00\x00\x00\x09"), copyData("nbase.tar\x00\x00"), copyData("dbase"), copyData("d"+string(content)), copyData("m"), copyData("d{}"), message('c'))
	} else {
		all = append(all, message('H', 0, 0, 0), copyData(string(content)), theError('N', "WARNING", "01000", "sendFile"), message('c'),
			message('H', 0, 0, 0), copyData("base"), copyData(string(content)), message('c'), message('H', 0, 0, 0), copyData("{}"), message('c'))
	}
	return append(all, message('T', 0, 0), row("0/2000100", "1"), tagged("SELECT"), tagged("BASE_BACKUP"), message('Z', 'I'))
}

// takeBackup takes a whole backup from bytes that come in pieces. The texts
// tell what it handed over.
func takeBackup(t *testing.T, in []byte, typed bool, size int) (b *BaseBackup, texts []string, err error) {
	t.Helper()
	p := &silent{pieces{data: in, size: max(size, 1)}}
	c := &Conn{wire: &wire{conn: p, r: p}, version: Version{Num: 140000}}
	if typed {
		c.version.Num = 150000
	}
	b, err = c.BaseBackup(t.Context(), BackupOptions{})
	for err == nil {
		var m BackupMessage
		if m, err = b.Next(t.Context()); err == nil {
			texts = append(texts, fmt.Sprintf("%+v", m))
		}
	}
	return b, texts, err
}

// FuzzBackup feeds garbage: whatever it is, and in whatever pieces it comes,
// the same messages come out, in an order that makes sense, and only what the
// server has called complete is.
func FuzzBackup(f *testing.F) {
	for _, typed := range []bool{false, true} {
		all := wholeBackup(typed)
		f.Add(slices.Concat(all...), typed, 1000)
		for i := range all {
			f.Add(slices.Concat(all[:i]...), typed, 7)
			f.Add(slices.Concat(slices.Concat(all[:i]...), slices.Concat(all[min(i+1, len(all)):]...)), typed, 1)
			f.Add(slices.Concat(slices.Concat(all[:i]...), slices.Concat(all[max(i-1, 0):]...)), typed, 64)
			f.Add(slices.Concat(slices.Concat(all[:i]...), theError('E', "ERROR", "XX001", "perform_base_backup"), message('Z', 'I')), typed, 100)
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, typed bool, size int) {
		b, texts, err := takeBackup(t, slices.Clone(in), typed, size)
		_, again, err2 := takeBackup(t, slices.Clone(in), typed, 1<<20)
		if !slices.Equal(texts, again) || err.Error() != err2.Error() {
			t.Errorf("in pieces of %d: %q, %v; in one: %q, %v", size, texts, err, again, err2)
		}
		if errors.Is(err, io.EOF) != (err.Error() == "EOF") { // the bare one is the success
			t.Errorf("%v reads as a success", err)
		}
		archives, manifests := 0, 0
		for _, text := range texts {
			switch {
			case strings.HasPrefix(text, "{Kind:1 "):
				archives++
				if manifests > 0 || strings.Contains(text, "Name: ") || strings.Contains(text, "Name:.") {
					t.Errorf("archive %s, behind %d manifests", text, manifests)
				}
			case strings.HasPrefix(text, "{Kind:2 "):
				if archives == 0 {
					t.Errorf("content before an archive: %s", text)
				}
			case strings.HasPrefix(text, "{Kind:3 "):
				manifests++
				if archives != len(b.Tablespaces()) {
					t.Errorf("a manifest behind %d of %d archives", archives, len(b.Tablespaces()))
				}
			case !strings.HasPrefix(text, "{Kind:4 ") && !strings.HasPrefix(text, "{Kind:5 "):
				t.Errorf("message %s", text)
			}
		}
		if errors.Is(err, io.EOF) {
			said := bytes.Contains(in, []byte("BASE_BACKUP\x00")) || b.Suspect() != nil && bytes.Contains(in, []byte("XX001\x00"))
			if !said || manifests != 1 || b.Stop() == (segment.Position{}) || b.Stop().LSN < b.Start().LSN {
				t.Errorf("complete: %d manifests, from %v to %v", manifests, b.Start(), b.Stop())
			}
		} else if b != nil && (b.Suspect() != nil || b.Stop() != segment.Position{}) {
			t.Errorf("not complete: suspect %v, stop %v", b.Suspect(), b.Stop())
		}
	})
}

// The messages of FuzzBackup's seed are sound.
func TestWholeBackup(t *testing.T) {
	for _, typed := range []bool{false, true} {
		for _, size := range []int{1, 5, 6, 4096, 1 << 20} {
			b, texts, err := takeBackup(t, slices.Concat(wholeBackup(typed)...), typed, size)
			if !errors.Is(err, io.EOF) || len(texts) < 9 || b.Suspect() != nil {
				t.Errorf("typed %v, pieces of %d: %q, %v", typed, size, texts, err)
			}
		}
	}
}

// FuzzBackupMessage holds the parser against the documentation's words.
func FuzzBackupMessage(f *testing.F) {
	for _, seed := range []string{
		"", "n", "nbase.tar\x00\x00", "n16384.tar\x00/srv\x00", "nbase.tar\x00", "nbase.tar\x00\x00\x00", "n\x00\x00", "m", "mm", "d", "dx",
		"p\x00\x00\x00\x00\x00\x00\x00\x01", "p\x80\x00\x00\x00\x00\x00\x00\x01", "p\x00\x00\x00\x00\x00\x00\x00", "p\x00\x00\x00\x00\x00\x00\x00\x01\x00", "x",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		// Behind the body stands the next message: it must stay as it is.
		buf := append(slices.Clone(body), "next"...)
		m, err := parseTyped(buf[:len(body)])
		sound := len(body) > 0
		if sound {
			switch rest := string(body[1:]); body[0] {
			case 'n':
				parts := strings.Split(rest, "\x00")
				sound = len(parts) == 3 && parts[2] == "" && string(m.name) == parts[0] && string(m.path) == parts[1]
			case 'm':
				sound = rest == ""
			case 'd':
				sound = string(m.data) == rest
			case 'p':
				sound = len(rest) == 8 && rest[0] < 0x80 && m.done == int64(binary.BigEndian.Uint64(body[1:]))
			default:
				sound = false
			}
		}
		if sound != (err == nil) || err != nil && !errors.Is(err, ErrProtocol) || err == nil && m.kind != body[0] {
			t.Errorf("%q: %+v, %v; sound %v", body, m, err, sound)
		}
		if m.kind == 'd' && (append(m.data, 'x') == nil || string(buf[len(body):]) != "next") {
			t.Error("the data's room reaches into the next message")
		}
	})
}

// running is a backup in the middle of an archive, from a server that sends
// the same messages for ever, size bytes at a time.
func running(typed bool, size int, messages ...[]byte) *BaseBackup {
	e := &endless{data: slices.Concat(messages...)}
	r := readerOf(func(b []byte) (int, error) { return e.Read(b[:min(len(b), size)]) })
	b := &BaseBackup{wire: &wire{conn: e, r: r}, leash: leash{conn: e}, ending: make(chan struct{})}
	b.wire.reserve(backupBuffer)
	b.state = backupState{typed: typed, copying: true, section: BackupArchive, names: []string{"base.tar"}, begun: []bool{true}}
	return b
}

type readerOf func([]byte) (int, error)

func (f readerOf) Read(b []byte) (int, error) { return f(b) }

// The data path allocates nothing, be messages small or larger than usual and
// be reads as short as TLS makes them; nor does progress.
func TestBackupAllocates(t *testing.T) {
	for _, typed := range []bool{false, true} {
		for _, size := range []int{100, 32 << 10, 184_000} {
			for _, read := range []int{16 << 10, 1 << 20} {
				content := message('d', append([]byte("d"), make([]byte, size)...)...)
				progress := message('d', append([]byte("p"), make([]byte, 8)...)...)
				b := running(typed, read, content, content, progress)
				next := func() {
					if m, err := b.Next(t.Context()); err != nil || m.Kind == 0 {
						t.Fatalf("%+v, %v", m, err)
					}
				}
				for range 600 { // the first progress made up, and the first growth
					next()
				}
				if n := testing.AllocsPerRun(1000, next); n > 0 {
					t.Errorf("typed %v, %d bytes, reads of %d: %v allocations a message", typed, size, read, n)
				}
				_ = b.Close()
			}
		}
	}
}

// A message larger than the buffer makes it grow, once.
func TestBackupLarge(t *testing.T) {
	b := running(true, 1<<20, message('d', append([]byte("d"), make([]byte, 3*backupBuffer)...)...))
	for range 10 {
		if m, err := b.Next(t.Context()); err != nil || len(m.Data) != 3*backupBuffer {
			t.Fatalf("%d bytes, %v", len(m.Data), err)
		}
	}
	if len(b.wire.buf) > 4*backupBuffer {
		t.Errorf("the buffer has grown to %d bytes", len(b.wire.buf))
	}
	_ = b.Close()
}

func TestLeash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ours net.Conn
		begin := func() *leash {
			conn, theirs := net.Pipe()
			t.Cleanup(func() { _, _ = conn.Close(), theirs.Close() })
			go func() {
				time.Sleep(time.Minute)
				_, _ = theirs.Write([]byte("x"))
			}()
			ours = conn
			return &leash{conn: conn}
		}
		read := func() error { _, err := ours.Read(make([]byte, 1)); return err }

		// It ends a read that waits, one that comes later, and who comes then.
		l := begin()
		first, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for range 2 {
			if !l.hold(first) {
				t.Error("a context does not hold it")
			}
		}
		for range 2 {
			if err := read(); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("read: %v", err)
			}
		}
		for range 2 {
			if l.hold(t.Context()) {
				t.Error("another context holds what is closed")
			}
		}
		l.drop()

		// Who has given it away does not end it, be it to one that cannot end.
		for _, ctx := range []context.Context{t.Context(), context.Background()} {
			l := begin()
			before, cancel := context.WithCancel(t.Context())
			if !l.hold(before) || !l.hold(ctx) {
				t.Error("a context does not hold it")
			}
			cancel()
			if err := read(); err != nil {
				t.Errorf("read: %v", err)
			}
			l.drop()
		}
		// Dropped, it is nobody's.
		l = begin()
		last, cancel := context.WithCancel(t.Context())
		l.hold(last)
		l.drop()
		cancel()
		l.hold(last)
		if err := read(); err != nil {
			t.Errorf("read after drop: %v", err)
		}
		l.drop()
	})
}

// What was read before Close is not handed over behind it.
func TestBackupClosed(t *testing.T) {
	b := running(true, 1<<20, copyData("dcontent"))
	if _, err := b.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	if kind, _, _ := frame(b.wire.buf[b.wire.rp:b.wire.wp]); kind != 'd' {
		t.Fatal("nothing waits")
	}
	_ = b.Close()
	if m, err := b.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Next after Close: %+v, %v", m, err)
	}
}

// BenchmarkBackup is reception alone: what the wire costs for each byte.
func BenchmarkBackup(b *testing.B) {
	for _, size := range []int{32 << 10, 184_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			in := running(true, 256<<10, message('d', append([]byte("d"), make([]byte, size)...)...))
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := in.Next(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			_ = in.Close()
		})
	}
}
