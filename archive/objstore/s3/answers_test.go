package s3

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/integration/s3server"
)

// answer is what a scripted store says.
type answer struct {
	status int
	header map[string]string
	body   string
}

func xmlError(status int, code, message string) answer {
	return answer{status: status, header: map[string]string{"X-Amz-Request-Id": "REQ1", "Content-Type": "application/xml"},
		body: fmt.Sprintf("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code><Message>%s</Message><RequestId>REQ1</RequestId></Error>", code, message)}
}

// script is a store that gives the answers in turn, the last one for ever.
type script struct {
	*httptest.Server

	mu      sync.Mutex
	answers []answer        // guarded by mu
	got     []*http.Request // guarded by mu
	bodies  []string        // guarded by mu
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client is gone
	}
	s.mu.Lock()
	a := s.answers[0]
	if len(s.answers) > 1 {
		s.answers = s.answers[1:]
	}
	s.got = append(s.got, r)
	s.bodies = append(s.bodies, string(b))
	s.mu.Unlock()
	for name, value := range a.header {
		w.Header().Set(name, value)
	}
	w.WriteHeader(a.status)
	_, _ = io.WriteString(w, a.body) // the client may be gone
}

func (s *script) requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got
}

var somebody = s3server.User{AccessKey: "AKIASOMEBODY", SecretKey: "hunter2hunter2"}

// scripted starts a scripted store and opens it.
func scripted(t *testing.T, c Config, answers ...answer) (*script, *Store) {
	t.Helper()
	as(t, somebody)
	sc := &script{answers: answers}
	sc.Server = httptest.NewServer(sc)
	t.Cleanup(sc.Close)
	c.Bucket, c.Endpoint = "wal", sc.URL
	return sc, mustOpen(t, c)
}

// TestAnswers is the table of the package's documentation, and what lies
// between its rows.
func TestAnswers(t *testing.T) {
	ok := answer{status: 200}
	skewed := xmlError(403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.")
	ahead := xmlError(403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.")
	ahead.header["Date"] = time.Now().UTC().Add(time.Hour + 10*time.Second).Format(http.TimeFormat)
	const get, put, putIfAbsent, list, del = "get", "put", "put-if-absent", "list", "delete"
	all := []string{get, put, putIfAbsent, list, del}
	for _, test := range []struct {
		name    string
		answers []answer
		ops     []string
		want    error // nil: an error that allows no conclusion
		success bool
		words   []string
		count   int // of requests
	}{
		{"412", []answer{xmlError(412, "PreconditionFailed", "At least one")}, []string{putIfAbsent}, objstore.ErrExists, false, []string{"PreconditionFailed", "request REQ1"}, 1},
		{"412 without a body", []answer{{status: 412}}, []string{putIfAbsent}, objstore.ErrExists, false, nil, 1},
		{"412 to what had no condition", []answer{xmlError(412, "PreconditionFailed", "")}, []string{get, put, list, del}, nil, false, nil, 1},
		{"409 twice", []answer{xmlError(409, "ConditionalRequestConflict", "x"), xmlError(409, "ConditionalRequestConflict", "x"), ok}, []string{putIfAbsent}, nil, true, nil, 3},
		{"409, then 412", []answer{xmlError(409, "ConditionalRequestConflict", "x"), xmlError(412, "PreconditionFailed", "x")}, []string{putIfAbsent}, objstore.ErrExists, false, nil, 2},
		{"409 without end", []answer{xmlError(409, "ConditionalRequestConflict", "x")}, []string{putIfAbsent}, nil, false, []string{"ConditionalRequestConflict"}, attempts},
		{"404 NoSuchKey", []answer{xmlError(404, "NoSuchKey", "gone")}, []string{get}, objstore.ErrNotFound, false, []string{"NoSuchKey", "get wal_005/a"}, 1},
		{"404 NoSuchKey to delete", []answer{xmlError(404, "NoSuchKey", "gone")}, []string{del}, nil, true, nil, 1},
		{"404 NoSuchBucket", []answer{xmlError(404, "NoSuchBucket", "gone")}, all, objstore.ErrNoStore, false, []string{"there is no bucket wal"}, 1},
		{"404 bare", []answer{{status: 404}}, all, nil, false, []string{"no S3 error code", "404"}, 1},
		{"404 of a web server", []answer{{status: 404, body: "<html><head><title>Not Found</title></head><body><hr>nginx</body></html>"}}, all, nil, false, []string{"404"}, 1},
		{"404 of a JSON server", []answer{{status: 404, body: `{"error":"NoSuchKey"}`}}, all, nil, false, []string{"404"}, 1},
		{"404 with another code", []answer{xmlError(404, "NoSuchVersion", "gone")}, all, nil, false, []string{"NoSuchVersion"}, 1},
		{"NoSuchKey with another status", []answer{xmlError(400, "NoSuchKey", "gone")}, []string{get}, nil, false, nil, 1},
		{"403 AccessDenied", []answer{xmlError(403, "AccessDenied", "Access Denied.")}, all, objstore.ErrDenied, false, []string{"AccessDenied", "403", "REQ1"}, 1},
		{"403 InvalidAccessKeyId", []answer{xmlError(403, "InvalidAccessKeyId", "no such key")}, all, objstore.ErrDenied, false, []string{"InvalidAccessKeyId"}, 1},
		{"403 SignatureDoesNotMatch", []answer{xmlError(403, "SignatureDoesNotMatch", "x")}, all, objstore.ErrDenied, false, []string{"SignatureDoesNotMatch"}, 1},
		{"403 bare", []answer{{status: 403}}, all, objstore.ErrDenied, false, []string{"403"}, 1},
		{"400 ExpiredToken", []answer{xmlError(400, "ExpiredToken", "The provided token has expired.")}, all, objstore.ErrDenied, false, []string{"ExpiredToken"}, 1},
		{"403 RequestTimeTooSkewed", []answer{skewed}, all, objstore.ErrDenied, false, []string{"RequestTimeTooSkewed", "this host's clock", "set"}, 1},
		// Once more with the store's time, in case that the clock cannot be set.
		{"403 RequestTimeTooSkewed by a known time", []answer{ahead}, all, objstore.ErrDenied, false, []string{"RequestTimeTooSkewed", "this host's clock is 1h0m", "behind", "set"}, 2},
		{"403 RequestTimeTooSkewed, then well", []answer{ahead, ok}, []string{put, putIfAbsent, del}, nil, true, nil, 2},
		{"501 to the condition", []answer{xmlError(501, "NotImplemented", "A header you provided implies functionality that is not implemented")}, []string{putIfAbsent}, objstore.ErrConditionIgnored, false, nil, 1},
		{"501 to others", []answer{xmlError(501, "NotImplemented", "x")}, []string{get, put}, nil, false, nil, 1},
		{"503, then well", []answer{xmlError(503, "SlowDown", "x"), {status: 500}, xmlError(429, "TooManyRequests", "x"), ok}, []string{put, putIfAbsent, del}, nil, true, nil, 4},
		{"503 without end", []answer{xmlError(503, "SlowDown", "Reduce your rate")}, all, nil, false, []string{"SlowDown", "503"}, attempts},
		{"400 BadDigest once", []answer{xmlError(400, "BadDigest", "x"), ok}, []string{put}, nil, true, nil, 2},
		{"a long text of many lines", []answer{xmlError(400, "Odd\nCode", strings.Repeat("word\n\tword ", 1000))}, all, nil, false, []string{"Odd Code: word word"}, 1},
	} {
		for _, op := range test.ops {
			t.Run(test.name+" to "+op, func(t *testing.T) {
				t.Parallel()
				sc, s := parallelScript(t, test.answers)
				var err error
				switch op {
				case get:
					_, err = read(t, s, "wal_005/a")
				case put:
					err = s.Put(t.Context(), "wal_005/a", objstore.Bytes([]byte("content")))
				case putIfAbsent:
					err = s.PutIfAbsent(t.Context(), "wal_005/a", objstore.Bytes([]byte("content")))
				case list:
					_, err = listAll(t, s)
				case del:
					err = s.Delete(t.Context(), "wal_005/a")
				}
				if test.success && err != nil {
					t.Errorf("%v, want success", err)
				}
				if !test.success {
					mustBe(t, op, err, test.want, test.words...)
				}
				if err != nil && len(err.Error()) > 600 {
					t.Errorf("the error has %d bytes", len(err.Error()))
				}
				if n := len(sc.requests()); n != test.count {
					t.Errorf("%d requests, want %d", n, test.count)
				}
			})
		}
	}
}

// TestClosedConnections: which side of an exchange notices first that the
// connection broke is chance; what is said of it names what happened, and not
// the call that failed.
func TestClosedConnections(t *testing.T) {
	for err, want := range map[error]string{
		&net.OpError{Op: "set", Net: "tcp", Err: net.ErrClosed}:       "the connection was closed",
		fmt.Errorf("write: %w", io.ErrUnexpectedEOF):                  "the connection was closed",
		&net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}: "read: connection reset by peer",
	} {
		if got := plain(fmt.Errorf("request send failed: %w", err)); got != want {
			t.Errorf("%v is %q, want %q", err, got, want)
		}
	}
}

func listAll(t *testing.T, s *Store) ([]string, error) {
	t.Helper()
	return list(t, s, objstore.ListOptions{})
}

// parallelScript is scripted for tests that run side by side, which cannot set
// the environment.
func parallelScript(t *testing.T, answers []answer) (*script, *Store) {
	t.Helper()
	sc := &script{answers: answers}
	sc.Server = httptest.NewServer(sc)
	t.Cleanup(sc.Close)
	file := filepath.Join(t.TempDir(), "credentials")
	content := "[default]\naws_access_key_id = " + somebody.AccessKey + "\naws_secret_access_key = " + somebody.SecretKey + "\n"
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return sc, mustOpen(t, Config{Bucket: "wal", Region: "us-east-1", Endpoint: sc.URL, CredentialsFile: file, Profile: "default"})
}

// TestRequests: what goes out, over TLS and without.
func TestRequests(t *testing.T) {
	as(t, somebody)
	sc := &script{answers: []answer{{status: 200}}}
	sc.Server = httptest.NewTLSServer(sc)
	defer sc.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: sc.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	body := objstore.Bytes([]byte("123456789"))

	_, err := read(t, mustOpen(t, Config{Bucket: "wal", Endpoint: sc.URL}), "a")
	mustBe(t, "unknown authority", err, nil, "certificate")
	if n := len(sc.requests()); n != 0 {
		t.Fatalf("%d requests to a server that is not trusted", n)
	}
	s := mustOpen(t, Config{Bucket: "wal", Prefix: "pg", Region: "eu-central-1", Endpoint: sc.URL, CAFile: ca, SSEKMSKeyID: "key-1", StorageClass: "STANDARD_IA"})
	if err := s.PutIfAbsent(t.Context(), "wal_005/a", body); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "wal_005/a", body); err != nil {
		t.Fatal(err)
	}
	first, second := sc.requests()[0], sc.requests()[1]
	for name, want := range map[string]string{
		"X-Amz-Content-Sha256":                        "UNSIGNED-PAYLOAD",
		"X-Amz-Checksum-Crc32c":                       "4waSgw==", // E3069283
		"If-None-Match":                               "*",
		"X-Amz-Server-Side-Encryption":                "aws:kms",
		"X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "key-1",
		"X-Amz-Storage-Class":                         "STANDARD_IA",
		"Content-Length":                              "9",
		"Content-Encoding":                            "",
		"X-Amz-Trailer":                               "",
		"X-Amz-Decoded-Content-Length":                "",
		"Transfer-Encoding":                           "",
	} {
		got := first.Header.Get(name)
		if name == "Content-Length" {
			got = fmt.Sprint(first.ContentLength)
		}
		if got != want {
			t.Errorf("the header %s is %q, want %q", name, got, want)
		}
	}
	if len(first.TransferEncoding) != 0 || len(first.Trailer) != 0 || sc.bodies[0] != "123456789" {
		t.Errorf("the body came as %q with encoding %v, trailer %v", sc.bodies[0], first.TransferEncoding, first.Trailer)
	}
	if auth := first.Header.Get("Authorization"); !strings.Contains(auth, "/eu-central-1/s3/") || !strings.Contains(auth, "x-amz-checksum-crc32c") {
		t.Errorf("the signature is not of the region, or leaves out the checksum: %s", auth)
	}
	if first.URL.Path != "/wal/pg/wal_005/a" || first.ProtoMajor != 1 {
		t.Errorf("the request is %s %s", first.URL, first.Proto)
	}
	if second.Header.Get("If-None-Match") != "" {
		t.Error("Put has a condition")
	}

	plain, s := scripted(t, Config{SSE: "AES256"}, answer{status: 200})
	if err := s.PutIfAbsent(t.Context(), "wal_005/a", body); err != nil {
		t.Fatal(err)
	}
	r := plain.requests()[0]
	if got := r.Header.Get("X-Amz-Content-Sha256"); got != "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225" {
		t.Errorf("over plain HTTP the hash of the body is %q", got)
	}
	if r.Header.Get("X-Amz-Checksum-Crc32c") != "4waSgw==" || r.Header.Get("X-Amz-Server-Side-Encryption") != "AES256" || len(r.Trailer) != 0 {
		t.Errorf("over plain HTTP the headers are %v", r.Header)
	}
}

func TestCAFile(t *testing.T) {
	cleanEnv(t)
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{empty, empty + ".not"} {
		_, err := Open(t.Context(), Config{Bucket: "wal", CAFile: file})
		mustBe(t, file, err, nil, "empty.pem")
	}
}

// TestChecksums: what comes is held against what the store says it has.
func TestChecksums(t *testing.T) {
	whole := answer{status: 200, body: "123456789", header: map[string]string{"X-Amz-Checksum-Crc32c": "4waSgw=="}}
	for _, test := range []struct {
		name    string
		header  map[string]string
		body    string
		has     bool
		damaged bool
	}{
		{"right", whole.header, "123456789", true, false},
		{"wrong", whole.header, "123456780", true, true},
		{"none", nil, "123456780", false, false},
		{"of parts", map[string]string{"X-Amz-Checksum-Crc32c": "4waSgw==-3"}, "123456780", false, false},
		{"another kind", map[string]string{"X-Amz-Checksum-Crc32": "y/Q5Jg=="}, "123456789", false, false},
		{"another kind, wrong", map[string]string{"X-Amz-Checksum-Crc32": "y/Q5Jg=="}, "123456780", false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			sc, s := scripted(t, Config{}, answer{status: 200, header: test.header, body: test.body})
			r, info, err := s.Get(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			if sc.requests()[0].Header.Get("X-Amz-Checksum-Mode") != "ENABLED" {
				t.Error("the store is not asked for its checksum")
			}
			if info.Size != 9 || info.HasCRC != test.has || test.has && info.CRC32C != 0xE3069283 {
				t.Errorf("info is %+v", info)
			}
			b, err := io.ReadAll(r)
			if test.damaged {
				mustBe(t, "read", err, ErrChecksum)
			} else if err != nil || string(b) != test.body {
				t.Errorf("read %q, %v", b, err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	_, s := scripted(t, Config{}, answer{status: 200, header: map[string]string{"X-Amz-Checksum-Crc32c": "AAAAAA=="}})
	mustBe(t, "the store says that it stored something else", s.Put(t.Context(), "a", objstore.Bytes([]byte("x"))), nil, "checksum")
}

// TestRanges: an answer that is not the range that was asked for is none.
func TestRanges(t *testing.T) {
	for contentRange, good := range map[string]bool{
		"bytes 2-5/9": true, "bytes 2-5/6": true, "bytes 2-5/5": false, "bytes 2-5/*": false, "bytes 0-3/9": false, "bytes 2-6/9": false, "": false, "bytes 2-5": false,
	} {
		_, s := scripted(t, Config{}, answer{status: 206, header: map[string]string{"Content-Range": contentRange}, body: "3456"})
		r, info, err := s.GetRange(t.Context(), "a", 2, 4)
		if good != (err == nil) {
			t.Errorf("%q: %v", contentRange, err)
		}
		if err == nil {
			b, rerr := io.ReadAll(r)
			if cerr := r.Close(); rerr != nil || cerr != nil || string(b) != "3456" || info.HasCRC {
				t.Errorf("%q: %q, %+v, %v, %v", contentRange, b, info, rerr, cerr)
			}
		}
	}
	_, s := scripted(t, Config{}, answer{status: 200, body: "123456789"})
	_, _, err := s.GetRange(t.Context(), "a", 2, 4)
	mustBe(t, "a store that ignores the range", err, nil, "range")
	_, s = scripted(t, Config{}, xmlError(416, "InvalidRange", "x"))
	_, _, err = s.GetRange(t.Context(), "a", 2, 4)
	mustBe(t, "a range behind the end", err, nil, "InvalidRange")
}

// TestUnknownLength: a body whose end cannot be known is refused.
func TestUnknownLength(t *testing.T) {
	as(t, somebody)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, "some") // the client hangs up
	}))
	defer server.Close()
	_, err := read(t, mustOpen(t, Config{Bucket: "wal", Endpoint: server.URL}), "a")
	mustBe(t, "chunked", err, nil, "length")
}

func page(truncated bool, next string, items ...string) answer {
	var b strings.Builder
	fmt.Fprintf(&b, `<?xml version="1.0"?><ListBucketResult><Name>wal</Name><IsTruncated>%v</IsTruncated>`, truncated)
	if next != "" {
		fmt.Fprintf(&b, "<NextContinuationToken>%s</NextContinuationToken>", next)
	}
	for _, item := range items {
		if folder, ok := strings.CutPrefix(item, "prefix:"); ok {
			fmt.Fprintf(&b, "<CommonPrefixes><Prefix>%s</Prefix></CommonPrefixes>", folder)
		} else {
			fmt.Fprintf(&b, "<Contents><Key>%s</Key><Size>5</Size></Contents>", item)
		}
	}
	b.WriteString("</ListBucketResult>")
	return answer{status: 200, body: b.String()}
}

func TestLists(t *testing.T) {
	for _, test := range []struct {
		name    string
		answers []answer
		opts    objstore.ListOptions
		want    string // keys, divided by spaces
		fails   bool
	}{
		{"pages", []answer{page(true, "t1", "pg/a", "pg/b"), page(false, "", "pg/c")}, objstore.ListOptions{}, "a b c", false},
		{"an empty page between", []answer{page(true, "t1", "pg/a"), page(true, "t2"), page(false, "", "pg/c")}, objstore.ListOptions{}, "a c", false},
		{"folders between", []answer{page(false, "", "pg/a", "pg/c", "prefix:pg/b/", "prefix:pg/d/")}, objstore.ListOptions{Delimiter: "/"}, "a b/ c d/", false},
		{"objects of consoles", []answer{page(false, "", "pg/", "pg/wal_005/", "pg/wal_005/a")}, objstore.ListOptions{}, "wal_005/a", false},
		{"no order within a page", []answer{page(false, "", "pg/b", "pg/a")}, objstore.ListOptions{}, "", true},
		{"no order between pages", []answer{page(true, "t1", "pg/b"), page(false, "", "pg/a")}, objstore.ListOptions{}, "b", true},
		{"cut off", []answer{page(true, "", "pg/a")}, objstore.ListOptions{}, "a", true},
		{"error behind a page", []answer{page(true, "t1", "pg/a"), xmlError(403, "AccessDenied", "x")}, objstore.ListOptions{}, "a", true},
		{"limit", []answer{page(true, "t1", "pg/a", "pg/b")}, objstore.ListOptions{Limit: 2}, "a b", false},
		{"a store that does not know start-after", []answer{page(false, "", "pg/a", "pg/b", "pg/c")}, objstore.ListOptions{StartAfter: "b"}, "c", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			sc, s := scripted(t, Config{Prefix: "pg"}, test.answers...)
			got, err := list(t, s, test.opts)
			if strings.Join(got, " ") != test.want || (err != nil) != test.fails {
				t.Errorf("%q, %v, want %q, error: %v", got, err, test.want, test.fails)
			}
			for _, r := range sc.requests() {
				q := r.URL.Query()
				if q.Get("prefix") != "pg/"+test.opts.Prefix || test.opts.StartAfter != "" && q.Get("start-after") != "pg/"+test.opts.StartAfter {
					t.Errorf("the request is %s", r.URL)
				}
			}
		})
	}
}

// regional is a store whose buckets are in eu-central-1.
type regional struct {
	status int
	code   string
	mu     sync.Mutex
	heads  int      // guarded by mu
	signed []string // regions that requests were signed for; guarded by mu
}

func (g *regional) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, rest, signed := strings.Cut(r.Header.Get("Authorization"), "Credential=")
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.Method == http.MethodHead {
		g.heads++
		if signed {
			g.signed = append(g.signed, "head was signed")
		}
		w.Header().Set("X-Amz-Bucket-Region", "eu-central-1")
		w.WriteHeader(g.status)
		return
	}
	parts := strings.Split(rest, "/")
	region := "none"
	if len(parts) > 2 {
		region = parts[2]
	}
	g.signed = append(g.signed, region)
	if region == "eu-central-1" {
		return
	}
	message := "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-central-1'"
	if g.code == "PermanentRedirect" {
		w.Header().Set("X-Amz-Bucket-Region", "eu-central-1")
		message = "The bucket you are attempting to access must be addressed using the specified endpoint."
	}
	w.WriteHeader(g.status)
	_, _ = fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", g.code, message)
}

func TestRegion(t *testing.T) {
	as(t, somebody)
	for _, test := range []struct {
		name   string
		server *regional
		region string // configured
		env    string
		detect bool // as with AWS itself
		signed string
		heads  int
		fails  bool
	}{
		{"custom endpoint, 400 names it", &regional{status: 400, code: "AuthorizationHeaderMalformed"}, "", "", false, "us-east-1 eu-central-1 eu-central-1", 0, false},
		{"custom endpoint, 301 names it", &regional{status: 301, code: "PermanentRedirect"}, "", "", false, "us-east-1 eu-central-1 eu-central-1", 0, false},
		{"head answers 403", &regional{status: 403}, "", "", true, "eu-central-1 eu-central-1", 1, false},
		{"head answers 301", &regional{status: 301}, "", "", true, "eu-central-1 eu-central-1", 1, false},
		{"head answers 200", &regional{status: 200}, "", "", true, "eu-central-1 eu-central-1", 1, false},
		{"configured", &regional{status: 301, code: "PermanentRedirect"}, "eu-central-1", "", false, "eu-central-1 eu-central-1", 0, false},
		{"AWS_REGION", &regional{status: 301, code: "PermanentRedirect"}, "", "eu-central-1", false, "eu-central-1 eu-central-1", 0, false},
		{"configured wrongly, 301", &regional{status: 301, code: "PermanentRedirect"}, "us-west-2", "", false, "us-west-2 us-west-2", 0, true},
		{"configured wrongly, 400", &regional{status: 400, code: "AuthorizationHeaderMalformed"}, "us-west-2", "", false, "us-west-2 us-west-2", 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("AWS_REGION", test.env)
			server := httptest.NewServer(test.server)
			defer server.Close()
			s := mustOpen(t, Config{Bucket: "wal", Region: test.region, Endpoint: server.URL})
			s.detect = test.detect
			for range 2 {
				err := put(t, s, "a", "x")
				if test.fails {
					mustBe(t, "put", err, nil, "region eu-central-1, not us-west-2")
				} else if err != nil {
					t.Error(err)
				}
			}
			test.server.mu.Lock()
			defer test.server.mu.Unlock()
			if got := strings.Join(test.server.signed, " "); got != test.signed || test.server.heads != test.heads {
				t.Errorf("requests were signed for %s, %d heads, want %s, %d", got, test.server.heads, test.signed, test.heads)
			}
		})
	}
	if s := mustOpen(t, Config{Bucket: "wal"}); !s.detect || !s.follow {
		t.Error("on AWS without a region the bucket's own is not asked for")
	}
	if s := mustOpen(t, Config{Bucket: "wal", Region: "eu-central-1"}); s.detect || s.follow {
		t.Error("on AWS with a region the bucket's own is asked for")
	}
}

// TestTimeRunsOutBetweenAttempts: the caller's time ends in the pause behind a
// failed attempt; the reason of that is told, not only that time was up.
func TestTimeRunsOutBetweenAttempts(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, `<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>`)
	}))
	defer server.Close()
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	store, err := Open(t.Context(), Config{Bucket: "bucket", Endpoint: server.URL, Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), firstPause/2)
	defer cancel()
	_, _, err = store.Get(ctx, "k")
	if err == nil || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "Reduce your request rate") {
		t.Errorf("Get = %v", err)
	}
}
