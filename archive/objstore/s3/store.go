// Package s3 is an object store in a bucket of Amazon S3 or of a store that
// speaks its protocol.
//
// What an answer means is decided here and nowhere else:
//
//	answer                                  meaning
//	412 to If-None-Match                    ErrExists; perhaps our own object, whose answer was lost
//	409 ConditionalRequestConflict          the request is sent again; to CompleteMultipartUpload: ErrUploadLost
//	404 NoSuchKey                           ErrNotFound
//	404 NoSuchBucket                        ErrNoStore
//	404 NoSuchUpload                        ErrUploadLost, unless the object tells that its completion was carried out
//	404 without a code                      not known: a proxy, a wrong endpoint
//	401, 403, refused credentials           ErrDenied, never absence
//	501 to If-None-Match                    ErrConditionIgnored
//	429, 5xx, no or half an answer          sent again a few times, then not known
//	a put-if-absent whose connection broke  as before; then one byte of the object proves ErrExists
//	any answer to CompleteMultipartUpload   one byte of the object, which tells its size, decides
//	301, 400 that names another region      that region, unless one was configured
//
// An upload in parts is S3's multipart upload, with If-None-Match at its
// completion:
//
//	crash or lost answer    state left                     what happens next
//	begin, part, abort      an upload that is no object    AbortUploads, or a lifecycle rule, frees it
//	complete                the object, or the upload      the object is looked at, by whoever asked
//
// A call ends by itself: connections that do not come about, answers that do
// not begin and bodies that stop flowing, in both directions, are errors after Config's
// timeouts, and retries are few. (The SDK's own limit on retries, a quota that an
// outage uses up, is off.)
package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"

	"github.com/walferry/walferry/archive/objstore"
)

const (
	defaultRegion = "us-east-1"
	attempts      = 4
	firstPause    = 200 * time.Millisecond // doubles, ±20 %
	longestPause  = 5 * time.Second
)

// Store keeps objects in a bucket. It is safe for concurrent use.
type Store struct {
	cfg    Config     // Endpoint and Region as they came out of all sources
	loaded aws.Config // credentials that refresh themselves, and our client
	client *http.Client

	follow bool // no region was configured: believe the answers
	detect bool // and ask for the bucket's before the first call

	mu  sync.Mutex
	api *awss3.Client // guarded by mu; of the region that is believed now
}

var _ objstore.Store = (*Store)(nil)

// Open prepares the use of a bucket. It reads the environment and the shared
// files as every AWS tool does, and uses no network: whether the bucket exists and
// the credentials are good is known from the first call. Its errors are mistakes
// in the configuration.
func Open(ctx context.Context, c Config) (*Store, error) {
	return open(ctx, c, (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext)
}

func open(ctx context.Context, c Config, dial dialFunc) (*Store, error) {
	c, err := c.checked()
	if err != nil {
		return nil, fmt.Errorf("open S3 store: %w", err)
	}
	s := &Store{cfg: c}
	loaded, err := load(ctx, c, dial)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", s, err)
	}
	// Frozen: a BuildableClient would be rebuilt by the S3 client, without our dialer.
	buildable, ok := loaded.HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		return nil, fmt.Errorf("open %s: the HTTP client is a %T", s, loaded.HTTPClient)
	}
	if s.client, ok = buildable.Freeze().(*http.Client); !ok {
		return nil, fmt.Errorf("open %s: the HTTP client is a %T", s, buildable.Freeze())
	}
	loaded.HTTPClient = s.client
	s.loaded = loaded
	found := awss3.NewFromConfig(loaded, s.options).Options()
	if s.cfg.Endpoint, err = checkEndpoint(aws.ToString(found.BaseEndpoint)); err != nil {
		return nil, fmt.Errorf("open %s: %w", s, err)
	}
	if s.cfg.Region = found.Region; s.cfg.Region == "" {
		s.cfg.Region = defaultRegion
		s.follow, s.detect = true, s.cfg.Endpoint == ""
	}
	s.api = s.newClient(s.cfg.Region)
	return s, nil
}

// load reads the configuration that AWS tools share.
func load(ctx context.Context, c Config, dial dialFunc) (aws.Config, error) {
	var roots *x509.CertPool
	if c.CAFile != "" {
		var err error
		if roots, err = authorities(c.CAFile); err != nil {
			return aws.Config{}, err
		}
	}
	client := awshttp.NewBuildableClient().WithReadTimeout(0).WithTransportOptions(func(tr *http.Transport) {
		prepare(tr, dial, c.ConnectTimeout, c.StallTimeout)
		if roots != nil { // what AWS_CA_BUNDLE names is added to them
			tr.TLSClientConfig.RootCAs = roots
		}
	})
	opts := []func(*config.LoadOptions) error{
		config.WithHTTPClient(client),
		config.WithLogger(logger(c.Log)),
	}
	if c.Region != "" {
		opts = append(opts, config.WithRegion(c.Region))
	}
	if c.Profile != "" {
		opts = append(opts, config.WithSharedConfigProfile(c.Profile))
	}
	if c.CredentialsFile != "" {
		if _, err := os.Stat(c.CredentialsFile); err != nil {
			return aws.Config{}, fmt.Errorf("read the credentials file: %w", err)
		}
		opts = append(opts, config.WithSharedCredentialsFiles([]string{c.CredentialsFile}))
	}
	loaded, err := config.LoadDefaultConfig(ctx, opts...)
	var noProfile config.SharedConfigProfileNotExistError
	var pathErr *fs.PathError
	switch {
	case errors.As(err, &noProfile):
		return aws.Config{}, fmt.Errorf("there is no profile %q in the shared AWS files", noProfile.Profile)
	case errors.As(err, &pathErr):
		return aws.Config{}, fmt.Errorf("read the AWS configuration: %w", pathErr)
	case err != nil:
		return aws.Config{}, fmt.Errorf("read the AWS configuration: %s", oneLine(err.Error()))
	}
	return loaded, nil
}

// authorities returns the system's certificate authorities and those of file.
func authorities(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the certificate authorities: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", file)
	}
	return pool, nil
}

// logger hands the SDK's remarks to log.
func logger(log *slog.Logger) logging.Logger {
	return logging.LoggerFunc(func(_ logging.Classification, format string, v ...any) {
		log.Debug("aws sdk: " + oneLine(fmt.Sprintf(format, v...)))
	})
}

// options makes a client of what was loaded.
func (s *Store) options(o *awss3.Options) {
	if s.cfg.Endpoint != "" {
		o.BaseEndpoint = aws.String(s.cfg.Endpoint)
	}
	o.UsePathStyle = s.cfg.PathStyle || needsPathStyle(aws.ToString(o.BaseEndpoint))
	o.Retryer, o.RetryMaxAttempts = newRetryer(), 0
	// Bodies carry the CRC32C that they know, as a header that is signed. The
	// SDK's own default is a trailer, which needs a coding that many stores do
	// not read. Under TLS it signs no SHA-256 of the body; over plain HTTP it does.
	o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
	o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired // Get asks for it
	o.DisableLogOutputChecksumValidationSkipped = true
}

// needsPathStyle tells of endpoints below which no name per bucket can exist.
func needsPathStyle(endpoint string) bool {
	u, err := url.Parse(endpoint)
	if err != nil || endpoint == "" {
		return false
	}
	return net.ParseIP(u.Hostname()) != nil || !strings.Contains(u.Hostname(), ".")
}

func (s *Store) newClient(region string) *awss3.Client {
	return awss3.NewFromConfig(s.loaded, s.options, func(o *awss3.Options) { o.Region = region })
}

// newRetryer is the SDK's, without its quota and with shorter pauses.
func newRetryer() aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = attempts
		o.RateLimiter = ratelimit.None
		o.Backoff = retry.BackoffDelayerFunc(func(attempt int, _ error) (time.Duration, error) { // of the attempt that failed, from 1 on
			return pause(attempt - 1), nil
		})
		// The first that is sure decides. After NoRetryCanceledError, the head.
		o.Retryables = append([]retry.IsErrorRetryable{o.Retryables[0], retry.IsErrorRetryableFunc(retryable)}, o.Retryables[1:]...)
		o.Retryables = append(o.Retryables,
			retry.RetryableHTTPStatusCode{Codes: map[int]struct{}{http.StatusTooManyRequests: {}}},
			retry.RetryableErrorCode{Codes: map[string]struct{}{
				"ConditionalRequestConflict":  {}, // 409: another conditional write is under way
				"OperationAborted":            {}, // 409
				"InternalError":               {},
				"BadDigest":                   {}, // the body was damaged on its way
				"XAmzContentChecksumMismatch": {},
			}})
	})
}

func pause(attempt int) time.Duration {
	d := firstPause << min(attempt, 16)
	d = min(d, longestPause)
	return d*4/5 + rand.N(d*2/5)
}

// retryable knows what the SDK does not: answers that break off are worth
// another try, certificates are not.
func retryable(err error) aws.Ternary {
	var tlsErr *tls.CertificateVerificationError
	switch {
	case errors.As(err, &tlsErr):
		return aws.FalseTernary
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ECONNRESET):
		return aws.TrueTernary
	}
	return aws.UnknownTernary
}

// String names the store as a URL, without the settings that do not place it.
func (s *Store) String() string {
	u := "s3://" + s.cfg.Bucket
	if s.cfg.Prefix != "" {
		u += "/" + s.cfg.Prefix
	}
	if s.cfg.Endpoint != "" {
		u += "?endpoint=" + s.cfg.Endpoint
	}
	return u
}

// Close gives up idle connections. The store must not be in use.
func (s *Store) Close() error {
	s.client.CloseIdleConnections()
	return nil
}

// host names the other side for messages.
func (s *Store) host() string {
	if s.cfg.Endpoint != "" {
		return s.cfg.Endpoint
	}
	return "S3 in " + s.region()
}

func (s *Store) region() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.api.Options().Region
}

func (s *Store) key(key string) *string {
	if s.cfg.Prefix != "" {
		key = s.cfg.Prefix + "/" + key
	}
	return &key
}

// bound is the longest that a call may take which moves size bytes, in all its
// attempts: an end also for a line on which something drips.
func (s *Store) bound(size int64) time.Duration {
	once := 2*s.cfg.ConnectTimeout + 2*s.cfg.StallTimeout + time.Duration(size/slowest)*time.Second
	return attempts * (once + longestPause)
}

// do makes one call, in the bucket's region. What it returns is an *Error.
func (s *Store) do(ctx context.Context, op, key string, conditional bool, call func(api *awss3.Client, noting func(*awss3.Options)) error) error {
	api, err := s.regional(ctx)
	var seen attemptErrors
	if err == nil {
		err = call(api, seen.option)
	}
	if region := regionIn(err); err != nil && s.follow && region != "" && region != api.Options().Region {
		s.cfg.Log.Debug("the bucket is in another region", "bucket", s.cfg.Bucket, "region", region)
		err = call(s.use(region), seen.option)
	}
	if err == nil {
		return nil
	}
	failed := s.failure(ctx, op, key, conditional, err)
	if failed.Status == 0 && seen.last != nil && (ctx.Err() != nil || isBound(ctx, err)) {
		// The time ran out between two attempts: why the first of them failed
		// is what somebody must mend.
		failed.Message += "; the attempt before: " + s.failure(context.WithoutCancel(ctx), op, key, conditional, seen.last).Message
	}
	return failed
}

// attemptErrors remembers, for one call, how its last attempt failed: the SDK
// forgets it when the time runs out in the pause behind it.
type attemptErrors struct{ last error }

// option puts a retryer into one call that notes what it is asked about.
func (a *attemptErrors) option(o *awss3.Options) {
	if inner, ok := o.Retryer.(aws.RetryerV2); ok {
		o.Retryer = &noting{RetryerV2: inner, errors: a}
	}
}

// noting is a retryer of one call; attempts are made one after the other.
type noting struct {
	aws.RetryerV2
	errors *attemptErrors
}

// IsErrorRetryable implements aws.Retryer.
func (n *noting) IsErrorRetryable(err error) bool {
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		n.errors.last = err
	}
	return n.RetryerV2.IsErrorRetryable(err)
}

// regional returns the client of the region that the bucket is in, as far as it
// is known. The first call finds it out.
func (s *Store) regional(ctx context.Context) (*awss3.Client, error) {
	s.mu.Lock()
	api, detect := s.api, s.detect
	s.mu.Unlock()
	if !detect {
		return api, nil
	}
	// Unsigned: the answer, mostly 403 or 301, names the region all the same.
	bounded, cancel := context.WithTimeout(ctx, s.bound(0))
	defer cancel()
	nobody := s.loaded
	nobody.Credentials = aws.AnonymousCredentials{}
	head := awss3.NewFromConfig(nobody, s.options, func(o *awss3.Options) { o.Region = defaultRegion })
	out, err := head.HeadBucket(bounded, &awss3.HeadBucketInput{Bucket: &s.cfg.Bucket})
	var answer *awshttp.ResponseError
	switch {
	case err == nil:
		return s.use(aws.ToString(out.BucketRegion)), nil
	case errors.As(err, &answer) && answer.Response != nil && answer.HTTPStatusCode() < 500:
		return s.use(regionIn(err)), nil
	}
	return api, err
}

// use makes region the one that is believed; empty: that of before.
func (s *Store) use(region string) *awss3.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detect = false
	if region != "" && region != s.api.Options().Region {
		s.api = s.newClient(region)
	}
	return s.api
}
