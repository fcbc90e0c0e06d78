package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/walferry/walferry/archive/codec"
)

// extract decodes a part and hands its files to the writers. replace lets them
// take the place of files of other parts.
func (u *unpacker) extract(ctx context.Context, p part, replace bool) error {
	if p.size == 0 {
		return fmt.Errorf("%w: %s is empty", ErrDamaged, p.object)
	}
	in := u.downloads.open(ctx, p.object, p.size)
	defer in.Close()
	err := u.decode(ctx, in, p, replace)
	switch {
	case err == nil:
	case in.failed != nil:
		return in.failed // it names the object, and says nothing about it
	case errors.Is(err, codec.ErrDamaged), errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: %s: %w", ErrDamaged, p.object, err)
	default:
		return fmt.Errorf("unpacking %s: %w", p.object, err)
	}
	return in.verify(p)
}

// verify compares what was read with what the backup says of it. The whole
// object must have been read.
func (o *object) verify(p part) error {
	crc, whole := o.checksum()
	if !whole {
		return fmt.Errorf("%w: %s was decoded before its end", ErrDamaged, p.object)
	}
	if p.known && crc != p.crc {
		return fmt.Errorf("%w: %s has CRC32C %08X instead of %08X", ErrDamaged, p.object, crc, p.crc)
	}
	return nil
}

func (u *unpacker) decode(ctx context.Context, in io.Reader, p part, replace bool) error {
	z, err := codec.NewReader(in, p.ext)
	if err != nil {
		return err
	}
	defer func() { _ = z.Close() }() // what was read was checked
	t := tar.NewReader(z)
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := u.entry(ctx, t, h, replace); err != nil {
			return err
		}
	}
	return drain(z)
}

// drain reads what follows a tar's end, which may only be the zeros that fill
// its last record, up to where the decoder vouches for all that it gave.
func drain(r io.Reader) error {
	var buf [4096]byte
	zeros := make([]byte, len(buf))
	for {
		n, err := r.Read(buf[:])
		if !bytes.Equal(buf[:n], zeros[:n]) {
			return fmt.Errorf("%w: bytes behind its end", codec.ErrDamaged)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// entry unpacks one entry of a tar. Base backups consist of files and
// directories: links of any kind are none of them (PostgreSQL sends the links
// of tablespaces in tablespace_map).
func (u *unpacker) entry(ctx context.Context, t io.Reader, h *tar.Header, replace bool) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	mode := fs.FileMode(h.Mode).Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		return u.tree.mkdir(name, mode)
	case tar.TypeReg:
	default:
		return fmt.Errorf("%w: %s is neither a file nor a directory (type %q of a tar's entries)", ErrDamaged, name, h.Typeflag)
	}
	if name == "" || h.Size < 0 {
		return fmt.Errorf("%w: an entry is called %q", ErrDamaged, h.Name)
	}
	skip, err := u.inventory.admit(name, h.Size)
	if err != nil {
		return err
	}
	if skip {
		u.log.Warn("a file that the backup does not list is left out", "file", name)
		_, err := io.Copy(io.Discard, t)
		return err
	}
	if err := u.tree.mkdir(parent(name), 0); err != nil {
		return err
	}
	f := &file{name: name, mode: mode, size: h.Size, replace: replace}
	if name == controlName {
		// By its place alone a server knows a directory that it may start in.
		f.name = hiddenControl
	}
	if err := u.writers.begin(f); err != nil {
		return err
	}
	return u.copy(t, f)
}

// copy hands a file's content to its writer.
func (u *unpacker) copy(r io.Reader, f *file) error {
	if f.size == 0 {
		u.writers.write(f, nil, 0, true)
		return nil
	}
	for left := f.size; left > 0; {
		b := u.writers.buffer()
		n, err := io.ReadFull(r, b[:min(left, bufferSize)])
		if err != nil {
			u.writers.pool.Put(b)
			u.writers.drop(f)
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		left -= int64(n)
		u.writers.write(f, b, n, left == 0)
	}
	return nil
}
