package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/walferry/walferry/archive/objstore"
)

// upload is a multipart upload.
type upload struct {
	store *Store
	key   string
	id    string // S3's name of the upload

	mu    sync.Mutex
	parts map[int]storedPart // guarded by mu
	state state              // guarded by mu
}

type storedPart struct {
	objstore.Extent
	etag, sum string // as S3 tells and takes them
}

type state int

const (
	underWay  state = iota
	completed       // the object is there
	over            // given up
)

// BeginUpload implements objstore.Store. An answer that is lost leaves an
// upload that nobody knows; it takes no space, and AbortUploads finds it.
func (s *Store) BeginUpload(ctx context.Context, key string) (objstore.Upload, error) {
	if err := objstore.CheckKey(key); err != nil {
		return nil, fmt.Errorf("begin-upload: %w", err)
	}
	in := &awss3.CreateMultipartUploadInput{
		Bucket:               &s.cfg.Bucket,
		Key:                  s.key(key),
		ChecksumAlgorithm:    types.ChecksumAlgorithmCrc32c,
		ServerSideEncryption: types.ServerSideEncryption(s.cfg.SSE),
		StorageClass:         types.StorageClass(s.cfg.StorageClass),
	}
	if s.cfg.SSEKMSKeyID != "" {
		in.SSEKMSKeyId = &s.cfg.SSEKMSKeyID
	}
	bounded, cancel := context.WithTimeout(ctx, s.bound(0))
	defer cancel()
	var out *awss3.CreateMultipartUploadOutput
	err := s.do(ctx, "begin-upload", key, false, func(api *awss3.Client, noting func(*awss3.Options)) (err error) {
		out, err = api.CreateMultipartUpload(bounded, in, noting)
		return err
	})
	if err != nil {
		return nil, err
	}
	if aws.ToString(out.UploadId) == "" {
		return nil, fmt.Errorf("begin-upload %s: the answer names no upload", key)
	}
	return &upload{store: s, key: key, id: *out.UploadId, parts: map[int]storedPart{}}, nil
}

// Part implements objstore.Upload.
func (u *upload) Part(ctx context.Context, number int, at int64, body objstore.Body) error {
	const op = "upload-part"
	extent := objstore.Extent{At: at, Size: body.Size()}
	if err := objstore.CheckPart(number, extent); err != nil {
		return fmt.Errorf("%s %s: %w", op, u.key, err)
	}
	if u.stateNow() != underWay {
		return fmt.Errorf("%s %s: %w", op, u.key, objstore.ErrUploadLost)
	}
	s := u.store
	sum := encodeCRC(body.CRC32C())
	in := &awss3.UploadPartInput{
		Bucket:         &s.cfg.Bucket,
		Key:            s.key(u.key),
		UploadId:       &u.id,
		PartNumber:     aws.Int32(int32(number)),
		ContentLength:  aws.Int64(extent.Size),
		ChecksumCRC32C: &sum, // the store checks it
	}
	bounded, cancel := context.WithTimeout(ctx, s.bound(extent.Size))
	defer cancel()
	var out *awss3.UploadPartOutput
	err := s.do(ctx, op, u.key, false, func(api *awss3.Client, noting func(*awss3.Options)) (err error) {
		lent := &loan{body: body}
		defer lent.end()
		in.Body = io.NewSectionReader(lent, 0, extent.Size)
		out, err = api.UploadPart(bounded, in, noting)
		return err
	})
	if err != nil {
		return lost(err)
	}
	if got := aws.ToString(out.ChecksumCRC32C); got != "" && got != sum {
		return fmt.Errorf("%s %s, part %d: the store answers with checksum %.20q, not %q", op, u.key, number, got, sum)
	}
	if aws.ToString(out.ETag) == "" {
		return fmt.Errorf("%s %s, part %d: the answer names no part", op, u.key, number)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.parts[number] = storedPart{extent, *out.ETag, sum}
	return nil
}

func (u *upload) stateNow() state {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.state
}

// Complete implements objstore.Upload with If-None-Match: *.
//
// When the answer does not come, or says that there is no such upload (it was
// carried out, and the answer to it was lost, or somebody aborted it), the object
// itself is looked at. One with our size is ours: nobody but this upload can have
// made it since the parts were begun, but who uses the same key at the same
// time, which the archive's names exclude. A 409 says that another write of this
// key came between: the parts may be gone, and S3 wants the upload to begin
// again ("CompleteMultipartUpload", errors).
func (u *upload) Complete(ctx context.Context) error {
	const op = "complete-upload"
	u.mu.Lock()
	defer u.mu.Unlock()
	switch u.state {
	case completed:
		return nil
	case over:
		return fmt.Errorf("%s %s: %w", op, u.key, objstore.ErrUploadLost)
	}
	size, parts, err := u.list()
	if err != nil {
		return fmt.Errorf("%s %s: %w", op, u.key, err)
	}
	unsure := false // whether an attempt before may have been carried out
	for attempt := 0; ; attempt++ {
		err := u.complete(ctx, parts)
		var failed *Error
		switch {
		case err == nil:
			u.state = completed
			return nil
		case errors.Is(err, objstore.ErrExists) && !unsure:
			u.state = over
			return errors.Join(err, u.abort(ctx))
		case !errors.As(err, &failed), failed.kind != nil && failed.kind != objstore.ErrExists, ctx.Err() != nil:
			return err
		}
		unsure = unsure || failed.Status == 0 || failed.Status >= 500
		found, lookErr := u.size(ctx)
		switch {
		case lookErr == nil && found == size:
			u.state = completed
			return nil
		case lookErr == nil:
			u.state = over
			failed.kind = objstore.ErrExists
			return errors.Join(failed, u.abort(ctx))
		case !errors.Is(lookErr, objstore.ErrNotFound):
			return err
		case failed.Code == "NoSuchUpload" || failed.Status == http.StatusConflict:
			u.state = over
			failed.kind = objstore.ErrUploadLost
			return failed
		case failed.Status != 0 && failed.Status < 500, attempt+1 == attempts:
			return err
		}
		if err := sleep(ctx, pause(attempt)); err != nil {
			return failed
		}
	}
}

// list returns the parts as S3 wants them, and how many bytes they have. mu is
// held.
func (u *upload) list() (size int64, parts []types.CompletedPart, err error) {
	extents := map[int]objstore.Extent{}
	for number, p := range u.parts {
		extents[number] = p.Extent
		parts = append(parts, types.CompletedPart{
			PartNumber: aws.Int32(int32(number)), ETag: aws.String(p.etag), ChecksumCRC32C: aws.String(p.sum),
		})
	}
	slices.SortFunc(parts, func(a, b types.CompletedPart) int { return int(*a.PartNumber - *b.PartNumber) })
	size, err = objstore.CheckParts(extents)
	return size, parts, err
}

// complete makes one attempt.
func (u *upload) complete(ctx context.Context, parts []types.CompletedPart) error {
	s := u.store
	bounded, cancel := context.WithTimeout(ctx, s.bound(0))
	defer cancel()
	return s.do(ctx, "complete-upload", u.key, true, func(api *awss3.Client, noting func(*awss3.Options)) error {
		_, err := api.CompleteMultipartUpload(bounded, &awss3.CompleteMultipartUploadInput{
			Bucket: &s.cfg.Bucket, Key: s.key(u.key), UploadId: &u.id,
			IfNoneMatch:     aws.String("*"),
			MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
		}, func(o *awss3.Options) { o.RetryMaxAttempts = 1 }, noting)
		return err
	})
}

// size asks for the object's.
func (u *upload) size(ctx context.Context) (int64, error) {
	first, info, err := u.store.GetRange(ctx, u.key, 0, 1)
	if err != nil {
		return 0, err
	}
	// Its answer said all that matters.
	_ = first.Close()
	return info.Size, nil
}

// Abort implements objstore.Upload.
func (u *upload) Abort(ctx context.Context) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.state != underWay {
		return nil
	}
	err := u.abort(ctx)
	if err == nil {
		u.state = over
	}
	return err
}

func (u *upload) abort(ctx context.Context) error {
	return u.store.abort(ctx, u.key, u.id)
}

func (s *Store) abort(ctx context.Context, key, id string) error {
	bounded, cancel := context.WithTimeout(ctx, s.bound(0))
	defer cancel()
	err := s.do(ctx, "abort-upload", key, false, func(api *awss3.Client, noting func(*awss3.Options)) error {
		_, err := api.AbortMultipartUpload(bounded, &awss3.AbortMultipartUploadInput{Bucket: &s.cfg.Bucket, Key: s.key(key), UploadId: &id}, noting)
		return err
	})
	if errors.Is(lost(err), objstore.ErrUploadLost) {
		return nil
	}
	return err
}

// lost gives the answer that there is no such upload its meaning.
func lost(err error) error {
	var failed *Error
	if errors.As(err, &failed) && failed.Code == "NoSuchUpload" {
		failed.kind = objstore.ErrUploadLost
	}
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// AbortUploads implements objstore.Store.
func (s *Store) AbortUploads(ctx context.Context, prefix string, before time.Time) (int, error) {
	in := &awss3.ListMultipartUploadsInput{Bucket: &s.cfg.Bucket, Prefix: s.key(prefix)}
	given := 0
	for {
		out, err := s.uploads(ctx, prefix, in)
		if err != nil {
			return given, err
		}
		for _, u := range out.Uploads {
			key, ok := strings.CutPrefix(aws.ToString(u.Key), *s.key(""))
			if !ok || objstore.CheckKey(key) != nil || u.Initiated == nil || !u.Initiated.Before(before) {
				continue
			}
			if err := s.abort(ctx, key, aws.ToString(u.UploadId)); err != nil {
				return given, err
			}
			given++
		}
		if !aws.ToBool(out.IsTruncated) {
			return given, nil
		}
		if aws.ToString(out.NextKeyMarker) == "" {
			return given, fmt.Errorf("abort-uploads %s: the listing is cut off and cannot be continued", prefix)
		}
		in.KeyMarker, in.UploadIdMarker = out.NextKeyMarker, out.NextUploadIdMarker
	}
}

func (s *Store) uploads(ctx context.Context, prefix string, in *awss3.ListMultipartUploadsInput) (out *awss3.ListMultipartUploadsOutput, err error) {
	bounded, cancel := context.WithTimeout(ctx, s.bound(0))
	defer cancel()
	err = s.do(ctx, "abort-uploads", prefix, false, func(api *awss3.Client, noting func(*awss3.Options)) (err error) {
		out, err = api.ListMultipartUploads(bounded, in, noting)
		return err
	})
	return out, err
}
