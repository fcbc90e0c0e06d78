package s3

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"github.com/walferry/walferry/archive/objstore"
)

// Error is what a call to the store ended with. errors.Is finds objstore's
// sentinels in it where the answer allows to conclude something, and the causes
// below.
type Error struct {
	Op        string // "get", "put-if-absent", …
	Key       string // or the prefix of a listing, or the store's URL
	Status    int    // of the answer; 0: there was none
	Code      string // S3's name of the error; empty when the answer had none
	Message   string // S3's words, or our own where there was no answer
	RequestID string

	kind  error // a sentinel of objstore, or nil: nothing may be concluded
	cause error // what the SDK said; its text is never shown
}

// Error says it in one line.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: ", e.Op, e.Key)
	if e.kind != nil {
		fmt.Fprintf(&b, "%v: ", e.kind)
	}
	if e.Code != "" {
		fmt.Fprintf(&b, "%s: ", e.Code)
	}
	b.WriteString(e.Message)
	switch {
	case e.Status != 0 && e.RequestID != "":
		fmt.Fprintf(&b, " (status %d, request %s)", e.Status, e.RequestID)
	case e.Status != 0:
		fmt.Fprintf(&b, " (status %d)", e.Status)
	}
	return b.String()
}

// Unwrap gives the sentinel and the cause.
func (e *Error) Unwrap() []error {
	var all []error
	for _, err := range []error{e.kind, e.cause} {
		if err != nil {
			all = append(all, err)
		}
	}
	return all
}

// deniedCodes are S3's names for refused credentials that come with other
// statuses than 403 (S3 API reference, "Error responses").
var deniedCodes = map[string]bool{
	"AccessDenied": true, "InvalidAccessKeyId": true, "SignatureDoesNotMatch": true,
	"ExpiredToken": true, "InvalidToken": true, "TokenRefreshRequired": true,
	"AllAccessDisabled": true, "AccountProblem": true, "InvalidSecurity": true, "NotSignedUp": true,
}

// failure makes an Error of what the SDK returned for the call. conditional
// says that the request carried If-None-Match.
func (s *Store) failure(ctx context.Context, op, key string, conditional bool, err error) *Error {
	e := &Error{Op: op, Key: key, cause: err}
	if key == "" { // a listing of all
		e.Key = s.String()
	}
	var answer *awshttp.ResponseError
	if errors.As(err, &answer) && answer.Response != nil {
		e.Status, e.RequestID = answer.HTTPStatusCode(), oneLine(answer.RequestID)
	}
	var api smithy.APIError
	if errors.As(err, &api) && !madeUp(api, e.Status) {
		e.Code, e.Message = oneLine(api.ErrorCode()), oneLine(api.ErrorMessage())
	}
	switch {
	case e.Status == 0:
		e.Message = s.unanswered(ctx, err)
		switch {
		case isBound(ctx, err):
			e.cause = nil // the caller's context goes on
		case isCredentials(err) && ctx.Err() == nil:
			e.kind = objstore.ErrDenied
		}
		return e
	case e.Code == "":
		e.Message = "the answer has no S3 error code: is the endpoint that of an S3 store?"
	}
	switch {
	case e.Code == "NoSuchBucket":
		e.kind, e.Message = objstore.ErrNoStore, "there is no bucket "+s.cfg.Bucket
	case e.Code == "AccessDenied":
		e.kind, e.Message = objstore.ErrDenied, strings.TrimSuffix(e.Message, ".")+" in bucket "+s.cfg.Bucket
	case e.Code == "RequestTimeTooSkewed":
		e.kind, e.Message = objstore.ErrDenied, skew(answer, time.Now())
	case e.Code == "NoSuchKey" && e.Status == http.StatusNotFound:
		e.kind = objstore.ErrNotFound
	case e.Code == "NoSuchUpload" && e.Status == http.StatusNotFound:
		e.kind = objstore.ErrUploadLost
	case e.Status == http.StatusForbidden || e.Status == http.StatusUnauthorized || deniedCodes[e.Code]:
		e.kind = objstore.ErrDenied
	case conditional && e.Status == http.StatusPreconditionFailed:
		e.kind = objstore.ErrExists
	case conditional && (e.Status == http.StatusNotImplemented || e.Code == "NotImplemented"):
		e.kind = objstore.ErrConditionIgnored
	}
	if region := regionIn(err); region != "" && region != s.region() && e.kind == nil {
		e.Message = fmt.Sprintf("the bucket is in region %s, not %s", region, s.region())
	}
	return e
}

// skew says what is wrong with this host's clock. (The SDK signs once more with
// the time that the store tells: who comes here was not helped by that.)
func skew(answer *awshttp.ResponseError, now time.Time) string {
	if answer != nil && answer.Response != nil {
		there, err := http.ParseTime(answer.Response.Header.Get("Date"))
		switch off := there.Sub(now).Round(time.Minute); {
		case err != nil:
		case off >= time.Minute:
			return fmt.Sprintf("this host's clock is %s behind the store's: set it", off)
		case off <= -time.Minute:
			return fmt.Sprintf("this host's clock is %s ahead of the store's: set it", -off)
		}
	}
	return "this host's clock and the store's differ too much: set the one that is wrong"
}

// madeUp tells of a code that the SDK derived from the status, since the
// answer had none (smithy s3shared.GetErrorResponseComponents).
func madeUp(api smithy.APIError, status int) bool {
	text := http.StatusText(status)
	return api.ErrorCode() == "UnknownError" ||
		api.ErrorCode() == strings.ReplaceAll(text, " ", "") && api.ErrorMessage() == text
}

// isBound tells of a call that was ended by its own bound: a context ended, and
// not the caller's.
func isBound(ctx context.Context, err error) bool {
	return ctx.Err() == nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled))
}

func isCredentials(err error) bool {
	return strings.Contains(err.Error(), "get identity: get credentials: ")
}

// unanswered says why there was no answer.
func (s *Store) unanswered(ctx context.Context, err error) string {
	attempts := ""
	var many *retry.MaxAttemptsError
	if errors.As(err, &many) {
		attempts = fmt.Sprintf(" (%d attempts)", many.Attempt)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err().Error()
	case isBound(ctx, err) && isCredentials(err):
		return "no AWS credentials within the time a call may take"
	case isBound(ctx, err):
		return "no answer from " + s.host() + " within the time a call may take"
	case isCredentials(err):
		return credentials(err)
	}
	why := plain(err)
	var dnsErr *net.DNSError
	if errors.As(err, &dnsErr) && dnsErr.IsNotFound && s.cfg.Endpoint != "" && strings.HasPrefix(dnsErr.Name, s.cfg.Bucket+".") {
		why += " (has the store no names per bucket? then path_style=true)"
	}
	return "no answer from " + s.host() + ": " + why + attempts
}

// credentials says why there are none, in the words of the deepest cause.
func credentials(err error) string {
	text := err.Error()
	_, text, _ = strings.Cut(text, "get credentials: ")
	text = strings.TrimPrefix(text, "failed to refresh cached credentials, ")
	if strings.HasPrefix(text, "no EC2 IMDS role found") {
		return "no AWS credentials found: neither in the environment (AWS_ACCESS_KEY_ID) nor in the shared files (~/.aws/credentials) nor from this machine's role"
	}
	return "no AWS credentials: " + oneLine(text)
}

// plain is the text of a failed exchange without the layers around it.
func plain(err error) string {
	var (
		urlErr *url.Error
		opErr  *net.OpError
		dnsErr *net.DNSError
		tlsErr *tls.CertificateVerificationError
	)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "nothing moved on the connection for too long"
	case errors.As(err, &dnsErr):
		return oneLine(fmt.Sprintf("look up %s: %s", dnsErr.Name, dnsErr.Err))
	case errors.As(err, &tlsErr):
		return oneLine(tlsErr.Err.Error())
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed):
		return "the connection was closed"
	case errors.As(err, &opErr):
		return oneLine(opErr.Op + ": " + opErr.Err.Error())
	case errors.As(err, &urlErr):
		return oneLine(urlErr.Err.Error()) // without the URL, which may be long
	}
	// The innermost error is the one that says what happened.
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(err) {
		err = next
	}
	return oneLine(err.Error())
}

const longestText = 300

// oneLine makes text of another side fit to be shown.
func oneLine(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
	if len(text) > longestText {
		text = strings.ToValidUTF8(text[:longestText], "") + "…"
	}
	return text
}

// regionIn finds the region that an answer names as the bucket's own.
func regionIn(err error) string {
	var answer *awshttp.ResponseError
	if errors.As(err, &answer) && answer.Response != nil {
		if r := answer.Response.Header.Get("X-Amz-Bucket-Region"); r != "" {
			return oneLine(r)
		}
	}
	var api smithy.APIError
	if errors.As(err, &api) && api.ErrorCode() == "AuthorizationHeaderMalformed" {
		// "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-central-1'"
		_, rest, _ := strings.Cut(api.ErrorMessage(), "expecting '")
		region, _, _ := strings.Cut(rest, "'")
		return oneLine(region)
	}
	return ""
}
