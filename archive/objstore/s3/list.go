package s3

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/walferry/walferry/archive/objstore"
)

// pageSize is the most entries that S3 gives in one answer.
const pageSize = 1000

// List implements objstore.Store, a request for every thousand entries. A
// store that lists in another order than the contract's is an error: who looks
// for the first key behind another would be told a wrong one.
func (s *Store) List(ctx context.Context, opts objstore.ListOptions) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		if err := s.list(ctx, opts, yield); err != nil {
			yield(objstore.Info{}, err)
		}
	}
}

func (s *Store) list(ctx context.Context, opts objstore.ListOptions, yield func(objstore.Info, error) bool) error {
	in := &awss3.ListObjectsV2Input{Bucket: &s.cfg.Bucket, Prefix: s.key(opts.Prefix)}
	if opts.StartAfter != "" {
		in.StartAfter = s.key(opts.StartAfter)
	}
	if opts.Delimiter != "" {
		in.Delimiter = &opts.Delimiter
	}
	if opts.Limit > 0 && opts.Limit < pageSize {
		in.MaxKeys = aws.Int32(int32(opts.Limit))
	}
	last, count := "", 0
	for {
		out, err := s.listPage(ctx, opts.Prefix, in)
		if err != nil {
			return err
		}
		if !slices.IsSortedFunc(out.Contents, byKey) {
			return fmt.Errorf("list %s: the store does not list in the order of bytes", opts.Prefix)
		}
		for _, info := range s.entries(out) {
			if info.Key <= opts.StartAfter {
				continue // a folder that begins before it
			}
			if info.Key <= last {
				return fmt.Errorf("list %s: the store lists %q behind %q, not in the order of bytes", opts.Prefix, info.Key, last)
			}
			last = info.Key
			count++
			if !yield(info, nil) || count == opts.Limit {
				return nil
			}
		}
		if !aws.ToBool(out.IsTruncated) {
			return nil
		}
		if aws.ToString(out.NextContinuationToken) == "" {
			return fmt.Errorf("list %s: the listing is cut off after %q and cannot be continued", opts.Prefix, last)
		}
		in.ContinuationToken = out.NextContinuationToken
	}
}

func byKey(a, b types.Object) int {
	return strings.Compare(aws.ToString(a.Key), aws.ToString(b.Key))
}

func (s *Store) listPage(ctx context.Context, prefix string, in *awss3.ListObjectsV2Input) (out *awss3.ListObjectsV2Output, err error) {
	bounded, cancel := context.WithTimeout(ctx, s.bound(0))
	defer cancel()
	err = s.do(ctx, "list", prefix, false, func(api *awss3.Client, noting func(*awss3.Options)) (err error) {
		out, err = api.ListObjectsV2(bounded, in, noting)
		return err
	})
	return out, err
}

// entries are the objects and folders of a page, in the order of their keys.
// What cannot be a key, such as the empty "folder/" objects of some tools, is
// left out.
func (s *Store) entries(out *awss3.ListObjectsV2Output) []objstore.Info {
	found := make([]objstore.Info, 0, len(out.Contents)+len(out.CommonPrefixes))
	root := *s.key("")
	for _, o := range out.Contents {
		key, ok := strings.CutPrefix(aws.ToString(o.Key), root)
		if ok && objstore.CheckKey(key) == nil {
			found = append(found, objstore.Info{Key: key, Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)})
		}
	}
	for _, p := range out.CommonPrefixes {
		key, ok := strings.CutPrefix(aws.ToString(p.Prefix), root)
		if ok && objstore.CheckKey(strings.TrimSuffix(key, "/")) == nil {
			found = append(found, objstore.Info{Key: key})
		}
	}
	slices.SortFunc(found, func(a, b objstore.Info) int { return strings.Compare(a.Key, b.Key) })
	return found
}
