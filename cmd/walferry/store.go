package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/walferry/walferry/archive/codec"
	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/dir"
	"github.com/walferry/walferry/archive/objstore/s3"
	"github.com/walferry/walferry/cmd/internal/settings"
)

// storeSettings says where the archive is. It is made by findStore.
type storeSettings struct {
	url    string // without secrets
	origin settings.Origin
	s3     *s3.Config // of s3://; nil: a directory
	dir    string     // of file://
	create bool       // the default archive: made when it is missing
}

// findStore finds out where the archive is: --store, WALFERRY_STORE and the
// settings file, then WAL-G's variables, then, with orDefault, archive/ in
// WALFERRY_HOME. Nothing is opened. Every error is wrong usage.
func (p *program) findStore(set *settings.Set, orDefault bool) (storeSettings, error) {
	if err := refuseEncryption(set); err != nil {
		return storeSettings{}, err
	}
	if v := set.Value("store"); v.IsSet() {
		return parseStore(v, set)
	}
	if v, ok := firstVariable(set, walgNames("S3_PREFIX")...); ok {
		return parseStore(v, set)
	}
	if v, ok := firstVariable(set, walgNames("FILE_PREFIX")...); ok {
		path := strings.TrimPrefix(strings.TrimPrefix(v.Text, "file://localhost"), "file://")
		if !filepath.IsAbs(path) {
			return storeSettings{}, usageError("invalid %s: want an absolute path", v.Describe())
		}
		return storeSettings{url: "file://" + path, origin: v.Origin, dir: path}, nil
	}
	for _, other := range []string{"WALG_GS_PREFIX", "WALG_AZ_PREFIX", "WALG_SWIFT_PREFIX", "WALG_SSH_PREFIX", "WALG_OSS_PREFIX", "WALE_GS_PREFIX", "WALE_AZ_PREFIX", "WALE_SWIFT_PREFIX"} {
		if v, ok := set.Variable(other); ok {
			return storeSettings{}, usageError("%s: walferry keeps its archive in S3 or in a directory: want --store s3://BUCKET/PREFIX or file:///DIR", v.Describe())
		}
	}
	if !orDefault {
		return storeSettings{}, usageError("no store given: want --store s3://BUCKET/PREFIX or file:///DIR (or WALFERRY_STORE, or store in the file of --config)")
	}
	home, err := set.HomeDir(p.userHome())
	if err != nil {
		return storeSettings{}, withExit(exitUsage, err, "")
	}
	path := filepath.Join(home, "archive")
	return storeSettings{url: "file://" + path, dir: path, create: true}, nil
}

// refuseEncryption refuses WAL-G's client-side encryption: to ignore it would
// put plain text where somebody counts on cipher text.
func refuseEncryption(set *settings.Set) error {
	for _, name := range set.Variables() {
		bare, ok := strings.CutPrefix(name, "WALG_")
		if !ok {
			if bare, ok = strings.CutPrefix(name, "WALE_"); !ok {
				continue
			}
		}
		if strings.HasPrefix(bare, "PGP_KEY") || strings.HasPrefix(bare, "LIBSODIUM_KEY") || bare == "GPG_KEY_ID" ||
			strings.HasPrefix(bare, "ENVELOPE_PGP") || strings.Contains(bare, "CSE_KMS") || bare == "S3_SSE_C" {
			v, _ := set.Variable(name)
			return usageError("%s (%s) asks for client-side encryption, which this version cannot do: nothing is stored unencrypted behind your back; unset it, or use WALG_S3_SSE for encryption by the store", name, v.Origin)
		}
	}
	return nil
}

// parseStore reads a store URL.
func parseStore(v settings.Value, set *settings.Set) (storeSettings, error) {
	s := storeSettings{url: v.Shown(), origin: v.Origin}
	scheme, rest, ok := strings.Cut(v.Text, "://")
	switch {
	case !ok && filepath.IsAbs(v.Text):
		return s, usageError("invalid %s: did you mean file://%s?", v.Describe(), v.Text)
	case !ok:
		return s, usageError("invalid %s: want s3://BUCKET/PREFIX or file:///DIR", v.Describe())
	case scheme == "file":
		rest = strings.TrimPrefix(rest, "localhost")
		if !filepath.IsAbs(rest) {
			return s, usageError("invalid %s: want three slashes and an absolute path, as in file:///%s", v.Describe(), rest)
		}
		if strings.Contains(rest, "?") {
			return s, usageError("invalid %s: a directory takes no keys behind a question mark", v.Describe())
		}
		s.dir = filepath.Clean(rest)
		return s, nil
	case scheme == "s3":
		return parseS3(v, set)
	}
	return s, usageError("invalid %s: unknown scheme %q: want s3:// or file://", v.Describe(), scheme)
}

// parseS3 reads an s3:// URL, and what WAL-G's and the AWS tools' variables
// add where the URL has no key for it. What the AWS library reads from the
// environment by itself is left to it.
func parseS3(v settings.Value, set *settings.Set) (storeSettings, error) {
	c, err := s3.ParseURL(v.Text)
	if err != nil {
		return storeSettings{}, withExit(exitUsage, fmt.Errorf("%s: %w", v.Describe(), err), "")
	}
	for _, add := range []struct {
		to   *string
		from []string
	}{
		{&c.SSE, walgNames("S3_SSE")},
		{&c.SSEKMSKeyID, walgNames("S3_SSE_KMS_ID")},
		{&c.StorageClass, walgNames("S3_STORAGE_CLASS")},
		{&c.CAFile, walgNames("S3_CA_CERT_FILE")},
		// The other two are for what stands in ~/.walg.json.
		{&c.Endpoint, []string{"AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"}},
	} {
		if x, ok := firstVariable(set, add.from...); ok && *add.to == "" {
			*add.to = x.Text
		}
	}
	if x, ok := set.Variable("AWS_S3_FORCE_PATH_STYLE"); ok && !strings.Contains(v.Text, "path_style=") {
		if c.PathStyle, err = strconv.ParseBool(x.Text); err != nil {
			return storeSettings{}, usageError("invalid %s: want true or false", x.Describe())
		}
	}
	return storeSettings{url: v.Shown(), origin: v.Origin, s3: &c}, nil
}

// walgNames are the variables in which WAL-G looks for a setting.
func walgNames(name string) []string { return []string{"WALG_" + name, "WALE_" + name} }

// firstVariable returns the first of the variables that is set.
func firstVariable(set *settings.Set, names ...string) (settings.Value, bool) {
	for _, name := range names {
		if v, ok := set.Variable(name); ok {
			return v, true
		}
	}
	return settings.Value{}, false
}

// open opens the store. The default archive is made when it is missing. No
// network is used: that a bucket is there is known from the first call.
func (s storeSettings) open(ctx context.Context) (objstore.Store, error) {
	if s.s3 != nil {
		store, err := s3.Open(ctx, *s.s3)
		if err != nil { // a mistake in what the environment adds
			return nil, withExit(exitUsage, fmt.Errorf("the store %s (%s): %w", s.url, s.origin, err), "")
		}
		return store, nil
	}
	var opts []dir.Option
	if s.create {
		opts = append(opts, dir.Create)
	}
	store, err := dir.Open(s.dir, opts...)
	if err != nil {
		hint := ""
		if errors.Is(err, objstore.ErrNoStore) {
			hint = "make the directory, or see whether it is mounted"
		}
		return nil, withExit(exitFailed, err, hint)
	}
	return store, nil
}

// compressionGiven reports whether somebody has said how WAL is compressed;
// else the archive's own codec wins.
func compressionGiven(set *settings.Set) bool {
	_, walg := set.Variable("WALG_COMPRESSION_METHOD")
	return walg || set.Value("compress").IsSet()
}

// findCompression returns --compress, else what WAL-G is told to do, else lz4.
func findCompression(set *settings.Set) (codec.Method, error) {
	v := set.Value("compress")
	if !v.IsSet() {
		if walg, ok := firstVariable(set, walgNames("COMPRESSION_METHOD")...); ok {
			v = walg
		}
	}
	m, err := codec.Parse(v.Text)
	if err != nil {
		return codec.Method{}, withExit(exitUsage, fmt.Errorf("%s: %w", v.Origin, err), "say --compress to choose another method for new segments: every method of WAL-G's is read")
	}
	return m, nil
}

func checkCompress(text string) error {
	_, err := codec.Parse(text)
	return err
}
