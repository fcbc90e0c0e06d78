package s3

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/walferry/walferry/archive/objstore"
)

// PutIfAbsent implements objstore.Store with If-None-Match: *.
//
// A store may answer 412 as soon as it has seen the headers, and close the
// connection while the body is still on its way: the reset can overtake the
// answer. So after a connection that broke, the object itself is asked for:
// one byte of it proves that it exists. Not for a small body, which is sent
// before any answer can come: the probe whether a store honours the condition
// is one, and nothing but the store's own 412 may answer that.
func (s *Store) PutIfAbsent(ctx context.Context, key string, body objstore.Body) error {
	err := s.put(ctx, "put-if-absent", key, body, true)
	if !broke(err) || body.Size() < earlyAnswer || ctx.Err() != nil {
		return err
	}
	first, _, getErr := s.GetRange(ctx, key, 0, 1)
	if getErr != nil {
		return err
	}
	// Its answer said all that matters.
	_ = first.Close()
	return &Error{Op: "put-if-absent", Key: key, Message: "it is there; the connection broke before the answer to the put", kind: objstore.ErrExists, cause: err}
}

// earlyAnswer is from how many bytes on a body may still be on its way when the
// answer comes.
const earlyAnswer = 16 << 10

// broke tells of a connection that ended in the middle of an exchange. Which of
// these it is hangs on who noticed first, the writing or the reading side.
func broke(err error) bool {
	for _, end := range []error{syscall.ECONNRESET, syscall.EPIPE, net.ErrClosed, io.ErrUnexpectedEOF, io.EOF} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// Put implements objstore.Store.
func (s *Store) Put(ctx context.Context, key string, body objstore.Body) error {
	return s.put(ctx, "put", key, body, false)
}

func (s *Store) put(ctx context.Context, op, key string, body objstore.Body, conditional bool) error {
	if err := objstore.CheckKey(key); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	sum := encodeCRC(body.CRC32C())
	in := &awss3.PutObjectInput{
		Bucket:               &s.cfg.Bucket,
		Key:                  s.key(key),
		ContentLength:        aws.Int64(body.Size()),
		ChecksumCRC32C:       &sum, // the store checks it
		ServerSideEncryption: types.ServerSideEncryption(s.cfg.SSE),
		StorageClass:         types.StorageClass(s.cfg.StorageClass),
	}
	if s.cfg.SSEKMSKeyID != "" {
		in.SSEKMSKeyId = &s.cfg.SSEKMSKeyID
	}
	if conditional {
		in.IfNoneMatch = aws.String("*")
	}
	bounded, cancel := context.WithTimeout(ctx, s.bound(body.Size()))
	defer cancel()
	var out *awss3.PutObjectOutput
	err := s.do(ctx, op, key, conditional, func(api *awss3.Client, noting func(*awss3.Options)) (err error) {
		lent := &loan{body: body}
		defer lent.end()
		in.Body = io.NewSectionReader(lent, 0, body.Size())
		out, err = api.PutObject(bounded, in, noting)
		return err
	})
	if err != nil {
		return err
	}
	if got := aws.ToString(out.ChecksumCRC32C); got != "" && got != sum {
		return fmt.Errorf("%s %s: the store answers with checksum %.20q, not %q", op, key, got, sum)
	}
	return nil
}

// loan gives a body to the HTTP transport until the call ends. The transport
// may go on reading behind its return, when the answer came before the body was
// sent; the body's memory may be in use for something else by then.
type loan struct {
	mu   sync.RWMutex
	body objstore.Body // nil: over; guarded by mu
}

func (l *loan) ReadAt(p []byte, at int64) (int, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.body == nil {
		return 0, errors.New("the request is over")
	}
	return l.body.ReadAt(p, at)
}

// end waits for reads under way, and lets no more begin.
func (l *loan) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.body = nil
}

// encodeCRC writes a checksum as S3 does: base64 of big-endian bytes.
func encodeCRC(crc uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc))
}

// decodeCRC reads what S3 tells of a whole object. A checksum of checksums of
// parts ("…-3") is none.
func decodeCRC(text *string) (uint32, bool) {
	b, err := base64.StdEncoding.DecodeString(aws.ToString(text))
	if err != nil || len(b) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(b), true
}

// Delete implements objstore.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := objstore.CheckKey(key); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	bounded, cancel := context.WithTimeout(ctx, s.bound(0))
	defer cancel()
	err := s.do(ctx, "delete", key, false, func(api *awss3.Client, noting func(*awss3.Options)) error {
		_, err := api.DeleteObject(bounded, &awss3.DeleteObjectInput{Bucket: &s.cfg.Bucket, Key: s.key(key)}, noting)
		return err
	})
	if errors.Is(err, objstore.ErrNotFound) {
		return nil
	}
	return err
}
