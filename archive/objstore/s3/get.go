package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/walferry/walferry/archive/objstore"
)

// ErrChecksum: the bytes that came are not those that were stored. They may
// have been damaged on the way: a second Get tells.
var ErrChecksum = errors.New("checksum does not match")

// Get implements objstore.Store. Where the store keeps a checksum of the whole
// object, of whatever kind, the bytes are held against it: ErrChecksum of the
// Read that meets the end.
func (s *Store) Get(ctx context.Context, key string) (io.ReadCloser, objstore.Info, error) {
	out, cancel, err := s.get(ctx, "get", key, &awss3.GetObjectInput{ChecksumMode: types.ChecksumModeEnabled})
	if err != nil {
		return nil, objstore.Info{}, err
	}
	if out.ContentLength == nil {
		defer cancel()
		// Without a length a body that was cut off could not be told from a whole one.
		return nil, objstore.Info{}, errors.Join(fmt.Errorf("get %s: the answer does not tell the object's length", key), out.Body.Close())
	}
	info := objstore.Info{Key: key, Size: *out.ContentLength}
	info.CRC32C, info.HasCRC = decodeCRC(out.ChecksumCRC32C)
	return &body{r: out.Body, over: ctx.Err, key: key, size: info.Size, cancel: cancel}, info, nil
}

// GetRange implements objstore.Store.
func (s *Store) GetRange(ctx context.Context, key string, offset, length int64) (io.ReadCloser, objstore.Info, error) {
	if err := objstore.CheckRange(offset, length); err != nil {
		return nil, objstore.Info{}, fmt.Errorf("get-range %s: %w", key, err)
	}
	in := &awss3.GetObjectInput{Range: aws.String(fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))}
	out, cancel, err := s.get(ctx, "get-range", key, in)
	if err != nil {
		return nil, objstore.Info{}, err
	}
	total, err := checkContentRange(aws.ToString(out.ContentRange), offset, length)
	if err == nil && aws.ToInt64(out.ContentLength) != length {
		err = fmt.Errorf("the answer has %d bytes", aws.ToInt64(out.ContentLength))
	}
	if err != nil {
		defer cancel()
		err = fmt.Errorf("get-range %s: bytes %d to %d: %w", key, offset, offset+length, err)
		return nil, objstore.Info{}, errors.Join(err, out.Body.Close())
	}
	info := objstore.Info{Key: key, Size: total}
	return &body{r: out.Body, over: ctx.Err, key: key, size: length, cancel: cancel}, info, nil
}

// checkContentRange reads "bytes 0-99/1234" (RFC 9110, 14.4), which must be the
// range that was asked for, and returns the size of the object.
func checkContentRange(text string, offset, length int64) (int64, error) {
	rest, ok := strings.CutPrefix(text, fmt.Sprintf("bytes %d-%d/", offset, offset+length-1))
	total, err := strconv.ParseInt(rest, 10, 64)
	if !ok || err != nil || total < offset+length {
		return 0, fmt.Errorf("the answer is the range %.60q", text)
	}
	return total, nil
}

// get begins a download. The caller calls cancel when it is over.
func (s *Store) get(ctx context.Context, op, key string, in *awss3.GetObjectInput) (*awss3.GetObjectOutput, context.CancelFunc, error) {
	if err := objstore.CheckKey(key); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", op, err)
	}
	in.Bucket, in.Key = &s.cfg.Bucket, s.key(key)
	// The bound is on the answer's beginning; then every Read has one of its own.
	bounded, cancel := context.WithCancel(ctx)
	timer := time.AfterFunc(s.bound(0), cancel)
	var out *awss3.GetObjectOutput
	err := s.do(ctx, op, key, false, func(api *awss3.Client, noting func(*awss3.Options)) (err error) {
		out, err = api.GetObject(bounded, in, noting)
		return err
	})
	timer.Stop()
	if err != nil {
		cancel()
		return nil, nil, err
	}
	return out, cancel, nil
}

// body gives exactly size bytes, or an error.
type body struct {
	r      io.ReadCloser
	over   func() error // whether the caller's context ended
	key    string
	size   int64
	read   int64
	cancel context.CancelFunc
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.read += int64(n)
	switch {
	case b.read > b.size:
		return n, fmt.Errorf("read %s: the body is longer than the %d bytes announced", b.key, b.size)
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF) && b.read == b.size:
		return n, io.EOF
	case b.over() != nil:
		return n, fmt.Errorf("read %s: %w", b.key, b.over())
	case b.read == b.size && strings.Contains(err.Error(), "checksum did not match"):
		return n, fmt.Errorf("read %s: %w", b.key, ErrChecksum)
	}
	return n, fmt.Errorf("read %s: %w after %d of %d bytes: %s", b.key, io.ErrUnexpectedEOF, b.read, b.size, plain(err))
}

func (b *body) Close() error {
	defer b.cancel()
	return b.r.Close()
}
