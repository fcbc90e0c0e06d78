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

	mu     sync.Mutex
	parts  map[int]storedPart // guarded by mu
	state  state              // guarded by mu
	unsure bool               // a completion may have been carried out; guarded by mu
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
	if !u.forget(number) {
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
		return err
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

// forget makes a part be missing until it is put again: on an error nobody knows
// which bytes the store has under its number. false: the upload is over.
func (u *upload) forget(number int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.parts, number)
	return u.state == underWay
}

// Complete implements objstore.Upload with If-None-Match: *.
//
// Behind its answer, whatever that is, the object itself is looked at (one
// byte of it, which tells its size), since answers are lost, and since a store
// that is still at work, or that was told to complete what somebody aborted, may
// call that done. When an attempt may have been carried out, an object of our
// size is ours: what else is stored under this key since the upload began is
// another upload of it, which the archive's names exclude. Without such an
// attempt it is another's.
//
// After a 409 S3 wants the upload to begin again ("CompleteMultipartUpload",
// section Errors): it is ErrUploadLost, or ErrExists.
func (u *upload) Complete(ctx context.Context) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch u.state {
	case completed:
		return nil
	case over:
		return fmt.Errorf("complete-upload %s: %w", u.key, objstore.ErrUploadLost)
	}
	size, parts, err := u.list()
	if err != nil {
		return fmt.Errorf("complete-upload %s: %w", u.key, err)
	}
	for attempt := 0; ; attempt++ {
		answer, again := u.try(ctx, size, parts)
		switch {
		case answer == nil && !again:
			u.state = completed
			return nil
		case errors.Is(answer, objstore.ErrExists), errors.Is(answer, objstore.ErrUploadLost):
			if again && attempt+1 < attempts {
				break
			}
			u.state = over
			// What cannot be freed takes space, and no more.
			if err := u.abort(ctx); err != nil {
				u.store.cfg.Log.Debug("the parts of an upload that was given up stay", "key", u.key, "error", err.Error())
			}
			return answer
		case !again, attempt+1 == attempts:
			return answer
		}
		if err := sleep(ctx, pause(attempt)); err != nil {
			return answer
		}
	}
}

// try makes one attempt and looks at what came of it. again says that another
// may do better; it never goes without an error. mu is held.
func (u *upload) try(ctx context.Context, size int64, parts []types.CompletedPart) (answer error, again bool) {
	err := u.complete(ctx, size, parts)
	said := meaning(err)
	if said == refused || said == taken && !u.unsure {
		return err, false
	}
	sure := said == done && !u.unsure
	u.unsure = u.unsure || said == done || said == unknown
	found, lookErr := u.size(ctx)
	switch {
	case lookErr == nil && found == size && u.unsure:
		return nil, false
	case lookErr == nil:
		return u.failed(objstore.ErrExists, err, fmt.Sprintf("an object of %d bytes, not of %d", found, size)), false
	case !errors.Is(lookErr, objstore.ErrNotFound) && sure:
		return nil, false // nothing speaks against the answer
	case !errors.Is(lookErr, objstore.ErrNotFound) && err == nil:
		return lookErr, true
	case !errors.Is(lookErr, objstore.ErrNotFound):
		return err, true
	case said == done:
		return u.failed(nil, nil, "the store says that it is done, and has no such object"), true
	case said == conflict:
		return u.failed(objstore.ErrUploadLost, err, ""), false
	}
	return err, said != gone || u.unsure
}

// failed is what an attempt ended with, in our words when there are any.
func (u *upload) failed(kind, err error, words string) *Error {
	e := &Error{Op: "complete-upload", Key: u.key, Message: words, kind: kind}
	var answer *Error
	if errors.As(err, &answer) {
		e.Status, e.Code, e.RequestID, e.cause = answer.Status, answer.Code, answer.RequestID, answer.cause
		if words == "" {
			e.Message = answer.Message
		}
	}
	return e
}

// verdict is what the answer to a completion lets conclude.
type verdict int

const (
	done     verdict = iota
	unknown          // it may have been carried out, or be under way
	passing          // it was not, and may be another time
	taken            // 412: an object of the key exists
	conflict         // 409: another write of the key came between
	gone             // there is no such upload
	refused          // it never will be
)

func meaning(err error) verdict {
	var e *Error
	switch {
	case err == nil:
		return done
	case errors.Is(err, objstore.ErrExists):
		return taken
	case errors.Is(err, objstore.ErrUploadLost):
		return gone
	case !errors.As(err, &e), e.kind != nil:
		return refused
	case e.Status == http.StatusConflict:
		return conflict
	case e.Status == http.StatusTooManyRequests, e.Status == http.StatusRequestTimeout:
		return passing
	case e.Code != "" && e.Status >= 400 && e.Status < 500:
		return refused
	}
	return unknown
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

// assembling is how fast a store at least puts an object together, in bytes a
// second, when it copies the parts instead of naming them. It sends nothing
// meanwhile.
const assembling = 64 << 20

// complete sends one request.
func (u *upload) complete(ctx context.Context, size int64, parts []types.CompletedPart) error {
	s := u.store
	longer := time.Duration(size/assembling) * time.Second
	bounded, cancel := context.WithTimeout(ctx, s.bound(0)+longer)
	defer cancel()
	patient, impatient := patiently(bounded, longer)
	defer impatient()
	return s.do(ctx, "complete-upload", u.key, true, func(api *awss3.Client, noting func(*awss3.Options)) error {
		// One attempt: between two of them the object is looked at.
		once := func(o *awss3.Options) { o.RetryMaxAttempts = 1 }
		_, err := api.CompleteMultipartUpload(patient, &awss3.CompleteMultipartUploadInput{
			Bucket: &s.cfg.Bucket, Key: s.key(u.key), UploadId: &u.id,
			IfNoneMatch:     aws.String("*"),
			MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
		}, once, noting)
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
	if errors.Is(err, objstore.ErrUploadLost) {
		return nil
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
