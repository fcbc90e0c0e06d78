package s3

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/walferry/walferry/archive/objstore"
)

// Config says where the store is and how it is used. Only Bucket is needed.
// What is empty is taken from where every AWS tool takes it: the environment
// (AWS_REGION, AWS_PROFILE, AWS_ENDPOINT_URL_S3, AWS_CA_BUNDLE, …) and the
// shared files in ~/.aws. Secrets are never part of it.
type Config struct {
	Bucket string
	Prefix string // of all keys, without slashes around it; may be empty

	Region   string // empty and nowhere configured: the bucket's own
	Endpoint string // URL of a store that is not AWS; without a scheme it is https
	// PathStyle asks for https://endpoint/bucket/key instead of
	// https://bucket.endpoint/key. An endpoint that is an IP address or a name
	// without a dot gets it always, since the other cannot work there.
	PathStyle       bool
	Profile         string // of the shared files
	CredentialsFile string // instead of ~/.aws/credentials

	SSE          string // "AES256", "aws:kms" or "aws:kms:dsse"; empty: as the bucket is set
	SSEKMSKeyID  string // implies SSE "aws:kms"
	StorageClass string
	CAFile       string // PEM; trusted besides the system's authorities

	// ConnectTimeout bounds a connection's making, its TLS handshake again so
	// much; StallTimeout the time in which no byte moves, in either
	// direction, the wait for an answer included. 0: 10 s and 30 s.
	ConnectTimeout time.Duration
	StallTimeout   time.Duration

	Log *slog.Logger // nil: discard
}

// keys are the query keys of a store URL.
var keys = map[string]func(c *Config, value string) error{
	"region":         func(c *Config, v string) error { c.Region = v; return nil },
	"endpoint":       func(c *Config, v string) error { c.Endpoint = v; return nil },
	"profile":        func(c *Config, v string) error { c.Profile = v; return nil },
	"sse":            func(c *Config, v string) error { c.SSE = v; return nil },
	"sse_kms_key_id": func(c *Config, v string) error { c.SSEKMSKeyID = v; return nil },
	"storage_class":  func(c *Config, v string) error { c.StorageClass = v; return nil },
	"ca_file":        func(c *Config, v string) error { c.CAFile = v; return nil },
	// The path of a file, for settings that must not hang on an environment.
	"credentials_file": func(c *Config, v string) error { c.CredentialsFile = v; return nil },
	"path_style": func(c *Config, v string) error {
		if v != "true" && v != "false" {
			return errors.New("want true or false")
		}
		c.PathStyle = v == "true"
		return nil
	},
}

// ParseURL reads s3://bucket/prefix?key=value&…, with the keys region,
// endpoint, path_style, profile, sse, sse_kms_key_id, storage_class, ca_file
// and credentials_file. Its errors say what would be right, and repeat nothing that may be a
// secret: a URL that holds one is refused.
func ParseURL(text string) (Config, error) {
	rest, ok := strings.CutPrefix(text, "s3://")
	if !ok {
		return Config{}, errors.New("invalid store URL: want s3://BUCKET/PREFIX")
	}
	rest, query, _ := strings.Cut(rest, "?")
	bucket, prefix, _ := strings.Cut(rest, "/")
	switch {
	case strings.ContainsAny(bucket, "@:") || strings.Contains(prefix, "@") && strings.Contains(text, "AKIA"):
		return Config{}, errors.New("invalid store URL: want s3://BUCKET/PREFIX without user, password or port: credentials come from the environment or ~/.aws/credentials, a server from the key endpoint")
	case strings.Contains(text, "#"):
		return Config{}, errors.New("invalid store URL: want s3://BUCKET/PREFIX without a # (write %23)")
	}
	c := Config{Bucket: bucket}
	var err error
	if c.Prefix, err = url.PathUnescape(strings.Trim(prefix, "/")); err != nil {
		return Config{}, errors.New("invalid store URL: the prefix has a % that begins no escape (write %25)")
	}
	if err := c.parseQuery(query); err != nil {
		return Config{}, fmt.Errorf("invalid store URL: %w", err)
	}
	if _, err := c.checked(); err != nil {
		return Config{}, fmt.Errorf("invalid store URL: %w", err)
	}
	return c, nil
}

func (c *Config) parseQuery(query string) error {
	values, err := url.ParseQuery(query)
	if err != nil {
		return errors.New("what follows the ? must be key=value, divided by & (write %25 for a percent sign, %3B for a semicolon)")
	}
	// Sorted, so that the same URL always gets the same error.
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		set, known := keys[name]
		switch {
		case !known:
			return unknownKey(name)
		case len(values[name]) > 1:
			return fmt.Errorf("the key %s is given %d times", name, len(values[name]))
		case values[name][0] == "":
			return fmt.Errorf("the key %s has no value", name)
		}
		if err := set(c, values[name][0]); err != nil {
			return fmt.Errorf("the key %s has a wrong value: %w", name, err)
		}
	}
	return nil
}

// unknownKey never repeats a key that may be a secret.
func unknownKey(name string) error {
	lower := strings.ToLower(name)
	for _, word := range []string{"secret", "password", "passwd", "token", "access_key", "accesskey", "access-key", "credential"} {
		if strings.Contains(lower, word) {
			return errors.New("it holds a secret: credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or ~/.aws/credentials, never from a URL")
		}
	}
	known := make([]string, 0, len(keys))
	for key := range keys {
		known = append(known, key)
	}
	slices.Sort(known)
	if !isWord(lower) {
		return fmt.Errorf("it has an unknown key: want one of %s", strings.Join(known, ", "))
	}
	best, distance := "", 4
	for _, key := range known {
		if d := edits(strings.ReplaceAll(lower, "-", "_"), key); d < distance {
			best, distance = key, d
		}
	}
	if best != "" {
		return fmt.Errorf("unknown key %s: did you mean %s?", name, best)
	}
	return fmt.Errorf("unknown key %s: want one of %s", name, strings.Join(known, ", "))
}

func isWord(s string) bool {
	return len(s) > 0 && len(s) <= 24 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz_-") == ""
}

// edits counts the letters to insert, delete or replace to make b of a.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// checked returns c with its defaults, or what is wrong with it.
func (c Config) checked() (Config, error) {
	if len(c.Bucket) < 3 || len(c.Bucket) > 63 || strings.ContainsFunc(c.Bucket, notInBucket) {
		return c, fmt.Errorf("%q is no name of a bucket: want 3 to 63 letters, digits, dots and hyphens", c.Bucket)
	}
	c.Prefix = strings.Trim(c.Prefix, "/")
	if c.Prefix != "" {
		if err := objstore.CheckKey(c.Prefix); err != nil || len(c.Prefix) > 255 {
			return c, fmt.Errorf("%q is no prefix: want parts divided by single slashes, at most 255 bytes", c.Prefix)
		}
	}
	var err error
	if c.Endpoint, err = checkEndpoint(c.Endpoint); err != nil {
		return c, err
	}
	if strings.ContainsFunc(c.Region, notInBucket) {
		return c, fmt.Errorf("%q is no region: want one as eu-central-1", c.Region)
	}
	if c.SSE == "" && c.SSEKMSKeyID != "" {
		c.SSE = string(types.ServerSideEncryptionAwsKms)
	}
	switch types.ServerSideEncryption(c.SSE) {
	case "", types.ServerSideEncryptionAwsKms, types.ServerSideEncryptionAwsKmsDsse:
	case types.ServerSideEncryptionAes256:
		if c.SSEKMSKeyID != "" {
			return c, errors.New("a KMS key goes with sse aws:kms, not AES256")
		}
	default:
		return c, fmt.Errorf("%q is no encryption by the store: want AES256, aws:kms or aws:kms:dsse", c.SSE)
	}
	// Other stores have classes of their own.
	if classes := types.StorageClass("").Values(); c.Endpoint == "" && c.StorageClass != "" && !slices.Contains(classes, types.StorageClass(c.StorageClass)) {
		return c, fmt.Errorf("%q is no storage class: want one as STANDARD or STANDARD_IA, in capitals", c.StorageClass)
	}
	if c.ConnectTimeout <= 0 {
		c.ConnectTimeout = 10 * time.Second
	}
	if c.StallTimeout <= 0 {
		c.StallTimeout = 30 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

func notInBucket(r rune) bool {
	letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
	return !letter && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
}

// checkEndpoint returns the endpoint with its scheme. It repeats nothing that
// may hold a password.
func checkEndpoint(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Hostname() == "":
		return "", errors.New("the endpoint is no URL: want one as https://s3.example.com:9000")
	case u.User != nil:
		return "", errors.New("the endpoint holds a user or password: credentials come from the environment or ~/.aws/credentials")
	case u.Scheme != "https" && u.Scheme != "http":
		return "", fmt.Errorf("the endpoint has the scheme %q: want https or http", u.Scheme)
	case u.RawQuery != "" || u.Fragment != "":
		return "", errors.New("the endpoint has a ? or #: want a URL as https://s3.example.com:9000")
	}
	return strings.TrimRight(u.String(), "/"), nil
}
