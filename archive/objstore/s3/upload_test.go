package s3

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/integration/s3server"
)

// begun is an upload of 9 bytes in one part, which is stored.
func begun(s *Store) *upload {
	return &upload{store: s, key: "a", id: "U", parts: map[int]storedPart{1: {objstore.Extent{At: 0, Size: 9}, `"e1"`, "4waSgw=="}}}
}

// play is a scripted store for a bubble: it gives the answers in turn, the last
// one for ever, and notes the verbs of the requests.
type play struct {
	mu      sync.Mutex
	answers []answer // guarded by mu
	verbs   []string // guarded by mu
}

func (p *play) handle(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	p.mu.Lock()
	a := p.answers[0]
	if len(p.answers) > 1 {
		p.answers = p.answers[1:]
	}
	p.verbs = append(p.verbs, r.Method)
	p.mu.Unlock()
	if a.status == 0 {
		panic(http.ErrAbortHandler) // the connection breaks
	}
	for name, value := range a.header {
		w.Header().Set(name, value)
	}
	w.WriteHeader(a.status)
	_, _ = io.WriteString(w, a.body)
}

// TestComplete: what every answer to a completion means, by what is then found
// under the key.
func TestComplete(t *testing.T) {
	var (
		done      = answer{status: 200, body: `<CompleteMultipartUploadResult><ETag>"e-1"</ETag></CompleteMultipartUploadResult>`}
		late      = answer{status: 200, body: `<?xml version="1.0"?><Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>`}
		cut       = answer{status: 200, body: `<CompleteMultipartUploadResult><ETag>"e-`}
		broken    = answer{}
		exists    = xmlError(412, "PreconditionFailed", "At least one")
		gone      = xmlError(404, "NoSuchUpload", "The specified multipart upload does not exist.")
		conflict  = xmlError(409, "ConditionalRequestConflict", "x")
		busy      = xmlError(503, "SlowDown", "Reduce your rate")
		absent    = xmlError(404, "NoSuchKey", "gone")
		aborted   = answer{status: 204}
		ours      = there(9)
		another   = there(5)
		forbidden = xmlError(403, "AccessDenied", "Access Denied.")
	)
	for _, test := range []struct {
		name    string
		answers []answer
		want    error // nil: an error that allows no conclusion
		success bool
		words   string
		verbs   string
	}{
		{"done", []answer{done, ours}, nil, true, "", "POST GET"},
		{"done, and it is another's", []answer{done, another, aborted}, objstore.ErrExists, false, "an object of 5 bytes, not of 9", "POST GET DELETE"},
		{"done, and nobody can look", []answer{done, busy}, nil, true, "", "POST GET GET GET GET"},
		{"done, and nobody may look", []answer{done, forbidden}, nil, true, "", "POST GET"},
		{"done, but under way", []answer{done, absent, done, ours}, nil, true, "", "POST GET POST GET"},
		{"done, and never is", []answer{done, absent, done, absent, done, absent, done, absent}, nil, false, "the store says that it is done, and has no such object", "POST GET POST GET POST GET POST GET"},
		{"done, but under way, and nobody can look", []answer{done, absent, done, forbidden, done, forbidden, done, forbidden}, objstore.ErrDenied, false, "", "POST GET POST GET POST GET POST GET"},

		{"exists", []answer{exists, aborted}, objstore.ErrExists, false, "PreconditionFailed", "POST DELETE"},
		{"exists, and the abort is not allowed", []answer{exists, forbidden}, objstore.ErrExists, false, "PreconditionFailed", "POST DELETE"},
		{"exists, and the abort finds nothing", []answer{exists, gone}, objstore.ErrExists, false, "PreconditionFailed", "POST DELETE"},

		{"answer lost, carried out", []answer{broken, ours}, nil, true, "", "POST GET"},
		{"answer lost, not carried out", []answer{broken, absent, done, ours}, nil, true, "", "POST GET POST GET"},
		{"answer lost, carried out later", []answer{broken, absent, exists, ours}, nil, true, "", "POST GET POST GET"},
		{"answer lost, carried out later, upload gone", []answer{broken, absent, gone, ours}, nil, true, "", "POST GET POST GET"},
		{"answer lost, another's object", []answer{broken, another, aborted}, objstore.ErrExists, false, "of 5 bytes", "POST GET DELETE"},
		{"answer lost, then another's object", []answer{broken, absent, exists, another, aborted}, objstore.ErrExists, false, "of 5 bytes", "POST GET POST GET DELETE"},
		{"answer lost, upload gone for good", []answer{broken, absent, gone, absent, gone, absent, gone, absent, gone}, objstore.ErrUploadLost, false, "NoSuchUpload", "POST GET POST GET POST GET POST GET DELETE"},
		{"answer cut off", []answer{cut, ours}, nil, true, "", "POST GET"},
		{"200 that is an error", []answer{late, absent, done, ours}, nil, true, "", "POST GET POST GET"},
		{"200 that is an error, carried out", []answer{late, ours}, nil, true, "", "POST GET"},
		{"404 of a proxy", []answer{{status: 404}, absent, done, ours}, nil, true, "", "POST GET POST GET"},
		{"503, then well", []answer{busy, absent, busy, absent, done, ours}, nil, true, "", "POST GET POST GET POST GET"},
		{"429, then well", []answer{xmlError(429, "TooManyRequests", "x"), absent, done, ours}, nil, true, "", "POST GET POST GET"},
		{"429, and another's object", []answer{xmlError(429, "TooManyRequests", "x"), ours, aborted}, objstore.ErrExists, false, "", "POST GET DELETE"},
		{"503 without end", []answer{busy}, nil, false, "SlowDown", "POST GET GET GET GET POST GET GET GET GET POST GET GET GET GET POST GET GET GET GET"},

		{"no such upload", []answer{gone, absent, aborted}, objstore.ErrUploadLost, false, "NoSuchUpload", "POST GET DELETE"},
		{"no such upload, and another's object", []answer{gone, ours, aborted}, objstore.ErrExists, false, "", "POST GET DELETE"},
		{"409", []answer{conflict, absent, aborted}, objstore.ErrUploadLost, false, "ConditionalRequestConflict", "POST GET DELETE"},
		{"409, and another's object", []answer{conflict, ours, aborted}, objstore.ErrExists, false, "", "POST GET DELETE"},

		{"403", []answer{forbidden}, objstore.ErrDenied, false, "AccessDenied", "POST"},
		{"no bucket", []answer{xmlError(404, "NoSuchBucket", "gone")}, objstore.ErrNoStore, false, "there is no bucket", "POST"},
		{"501 to the condition", []answer{xmlError(501, "NotImplemented", "x")}, objstore.ErrConditionIgnored, false, "NotImplemented", "POST"},
		{"a part that is not there", []answer{xmlError(400, "InvalidPart", "One or more of the specified parts could not be found.")}, nil, false, "InvalidPart", "POST"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &play{answers: test.answers}
			inBubble(t, p.handle, func(t *testing.T, s *Store) {
				u := begun(s)
				err := u.Complete(t.Context())
				if test.success {
					if err != nil {
						t.Errorf("%v, want success", err)
					}
				} else {
					mustBe(t, "complete", err, test.want, test.words)
				}
				if got := strings.Join(p.verbs, " "); got != test.verbs {
					t.Errorf("requests are %s, want %s", got, test.verbs)
				}
				// What is over is over, and what is not known goes on.
				n := len(p.verbs)
				err = u.Complete(t.Context())
				asked := len(p.verbs) > n
				switch {
				case test.success && (err != nil || asked):
					t.Errorf("again: %v, asked %v, want success without a request", err, asked)
				case errors.Is(test.want, objstore.ErrExists) || errors.Is(test.want, objstore.ErrUploadLost):
					mustBe(t, "again", err, objstore.ErrUploadLost)
					if asked {
						t.Error("again: the store is asked")
					}
				case !test.success && !asked:
					t.Errorf("again: %v without a request", err)
				}
			})
		})
	}
}

// there is the answer to a range of one byte of an object of so many.
func there(size int) answer {
	return answer{status: 206, header: map[string]string{"Content-Range": fmt.Sprintf("bytes 0-0/%d", size), "Content-Length": "1"}, body: "x"}
}

// TestCompleteAgain: who was told that it is not known asks again, and what an
// attempt of the call before did is taken for its own.
func TestCompleteAgain(t *testing.T) {
	busy := xmlError(503, "SlowDown", "x")
	answers := []answer{}
	for range attempts {
		answers = append(answers, busy, busy, busy, busy, busy)
	}
	p := &play{answers: append(answers, xmlError(404, "NoSuchUpload", "gone"), there(9))}
	inBubble(t, p.handle, func(t *testing.T, s *Store) {
		u := begun(s)
		mustBe(t, "complete", u.Complete(t.Context()), nil, "SlowDown")
		if err := u.Complete(t.Context()); err != nil {
			t.Errorf("again: %v", err)
		}
	})
}

// TestCompletePatience: a store that copies gigabytes together sends nothing
// meanwhile, and is not given up. The next request on its connection is.
func TestCompletePatience(t *testing.T) {
	const slow = 20 * time.Minute
	p := &play{answers: []answer{{status: 200, body: "<CompleteMultipartUploadResult/>"}, there(100 << 30)}}
	var looked atomic.Bool
	handle := func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			_, _ = io.Copy(io.Discard, r.Body)
			time.Sleep(slow)
		} else if looked.CompareAndSwap(false, true) {
			hang(r)
			return
		}
		p.handle(w, r)
	}
	inBubble(t, handle, func(t *testing.T, s *Store) {
		u := begun(s)
		for number := range 100 {
			u.parts[number+1] = storedPart{objstore.Extent{At: int64(number) << 30, Size: 1 << 30}, "e", "x"}
		}
		begin := time.Now()
		if err := u.Complete(t.Context()); err != nil {
			t.Error(err)
		}
		if got := strings.Join(p.verbs, " "); got != "POST GET" {
			t.Errorf("requests are %s: it did not wait", got)
		}
		if took := time.Since(begin); took > slow+2*s.cfg.StallTimeout {
			t.Errorf("it took %v: the look that was not answered waited, too", took)
		}
	})
	// A small object is no reason to wait.
	inBubble(t, func(_ http.ResponseWriter, r *http.Request) { hang(r) }, func(t *testing.T, s *Store) {
		begin := time.Now()
		mustBe(t, "complete", begun(s).Complete(t.Context()), nil, "nothing moved")
		if took := time.Since(begin); took > time.Hour {
			t.Errorf("it took %v", took)
		}
	})
}

// TestUploadRequests: what goes out.
func TestUploadRequests(t *testing.T) {
	as(t, somebody)
	created := answer{status: 200, body: "<InitiateMultipartUploadResult><UploadId>U/1+2</UploadId></InitiateMultipartUploadResult>"}
	part := func(n int) answer {
		return answer{status: 200, header: map[string]string{"ETag": fmt.Sprintf(`"e%d"`, n)}}
	}
	sc := &script{answers: []answer{created, part(2), part(1), {status: 200, body: "<CompleteMultipartUploadResult/>"}, there(5<<20 + 9)}}
	sc.Server = httptest.NewTLSServer(sc)
	defer sc.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: sc.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, Config{Bucket: "wal", Prefix: "pg", Region: "eu-central-1", Endpoint: sc.URL, CAFile: ca, SSEKMSKeyID: "key-1", StorageClass: "STANDARD_IA"})
	u, err := s.BeginUpload(t.Context(), "base/a")
	if err != nil {
		t.Fatal(err)
	}
	large := objstore.Bytes(make([]byte, objstore.MinPart))
	if err := errors.Join(
		u.Part(t.Context(), 2, objstore.MinPart, objstore.Bytes([]byte("123456789"))),
		u.Part(t.Context(), 1, 0, large),
		u.Complete(t.Context())); err != nil {
		t.Fatal(err)
	}
	got := sc.requests()
	for i, want := range []string{
		"POST /wal/pg/base/a?uploads=",
		"PUT /wal/pg/base/a?partNumber=2&uploadId=U%2F1%2B2&x-id=UploadPart",
		"PUT /wal/pg/base/a?partNumber=1&uploadId=U%2F1%2B2&x-id=UploadPart",
		"POST /wal/pg/base/a?uploadId=U%2F1%2B2",
		"GET /wal/pg/base/a?x-id=GetObject",
	} {
		if have := got[i].Method + " " + got[i].URL.String(); have != want {
			t.Errorf("request %d is %s, want %s", i, have, want)
		}
	}
	for name, want := range map[string]string{
		"X-Amz-Checksum-Algorithm":                    "CRC32C",
		"X-Amz-Server-Side-Encryption":                "aws:kms",
		"X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "key-1",
		"X-Amz-Storage-Class":                         "STANDARD_IA",
	} {
		if have := got[0].Header.Get(name); have != want {
			t.Errorf("begin: the header %s is %q, want %q", name, have, want)
		}
	}
	for name, want := range map[string]string{
		"X-Amz-Content-Sha256":  "UNSIGNED-PAYLOAD",
		"X-Amz-Checksum-Crc32c": "4waSgw==", // E3069283
		"Content-Encoding":      "",
		"X-Amz-Trailer":         "",
	} {
		if have := got[1].Header.Get(name); have != want {
			t.Errorf("part: the header %s is %q, want %q", name, have, want)
		}
	}
	if got[1].ContentLength != 9 || len(got[1].TransferEncoding) != 0 || sc.bodies[1] != "123456789" {
		t.Errorf("the part came as %q, %d bytes, encoding %v", sc.bodies[1], got[1].ContentLength, got[1].TransferEncoding)
	}
	if got[3].Header.Get("If-None-Match") != "*" {
		t.Error("complete has no condition")
	}
	first, second := strings.Index(sc.bodies[3], "<PartNumber>1</PartNumber>"), strings.Index(sc.bodies[3], "<PartNumber>2</PartNumber>")
	if first < 0 || second < first || !strings.Contains(sc.bodies[3], "<ChecksumCRC32C>4waSgw==</ChecksumCRC32C>") || !strings.Contains(sc.bodies[3], `e2`) {
		t.Errorf("complete says %s", sc.bodies[3])
	}
}

// TestUploadAnswers: answers to the other requests of an upload that are not
// what they should be.
func TestUploadAnswers(t *testing.T) {
	_, s := scripted(t, Config{}, answer{status: 200, body: "<InitiateMultipartUploadResult/>"})
	_, err := s.BeginUpload(t.Context(), "a")
	mustBe(t, "begin without a name", err, nil, "names no upload")
	for what, a := range map[string]answer{
		"names no part": {status: 200},
		"checksum":      {status: 200, header: map[string]string{"ETag": "e", "X-Amz-Checksum-Crc32c": "AAAAAA=="}},
	} {
		_, s := scripted(t, Config{}, a)
		u := begun(s)
		mustBe(t, what, u.Part(t.Context(), 1, 0, objstore.Bytes([]byte("x"))), nil, what)
		// It is not known which bytes the store has: the part is not there.
		mustBe(t, what+", then complete", u.Complete(t.Context()), nil, "no part")
	}
	for what, test := range map[string]struct {
		a    answer
		want error
	}{
		"lost":   {xmlError(404, "NoSuchUpload", "gone"), objstore.ErrUploadLost},
		"denied": {xmlError(403, "AccessDenied", "Access Denied."), objstore.ErrDenied},
	} {
		_, s := scripted(t, Config{}, test.a)
		mustBe(t, what, begun(s).Part(t.Context(), 1, 0, objstore.Bytes([]byte("x"))), test.want)
	}
	sc, s := scripted(t, Config{}, xmlError(503, "SlowDown", "x"), answer{status: 200, header: map[string]string{"ETag": "e"}})
	if err := begun(s).Part(t.Context(), 1, 0, objstore.Bytes([]byte("x"))); err != nil || len(sc.requests()) != 2 {
		t.Errorf("a part, 503 once: %v, %d requests", err, len(sc.requests()))
	}

	sc, s = scripted(t, Config{}, xmlError(403, "AccessDenied", "x"), answer{status: 204}, answer{status: 204})
	u := begun(s)
	mustBe(t, "abort", u.Abort(t.Context()), objstore.ErrDenied)
	for range 2 {
		if err := u.Abort(t.Context()); err != nil {
			t.Errorf("abort: %v", err)
		}
	}
	if n := len(sc.requests()); n != 2 {
		t.Errorf("%d requests for an abort that was denied once, and three calls", n)
	}
	_, s = scripted(t, Config{}, xmlError(404, "NoSuchUpload", "gone"))
	if err := begun(s).Abort(t.Context()); err != nil {
		t.Errorf("abort of what is gone: %v", err)
	}
}

// TestAbortUploads: a listing of several pages, of which only what is old and
// below the prefix is given up.
func TestAbortUploads(t *testing.T) {
	moment := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	page := func(more string, uploads ...string) answer {
		text := "<ListMultipartUploadsResult><IsTruncated>" + fmt.Sprint(more != "") + "</IsTruncated>" + more
		for _, u := range uploads {
			key, at, _ := strings.Cut(u, " ")
			text += "<Upload><Key>" + key + "</Key><UploadId>id-" + key + "</UploadId>"
			if at != "" {
				text += "<Initiated>" + at + "</Initiated>"
			}
			text += "</Upload>"
		}
		return answer{status: 200, body: text + "</ListMultipartUploadsResult>"}
	}
	const old, young = "2026-11-20T11:59:59Z", "2026-11-20T12:00:00Z"
	freed := answer{status: 204}
	next := "<NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker>"

	sc, s := scripted(t, Config{Prefix: "pg"},
		page(next, "pg/b/1 "+old, "pg/b/2 "+young, "pg/b/3", "other/b/4 "+old, "pg/b//5 "+old), freed,
		page("", "pg/b/6 "+old, "pg/b/7 "+old), xmlError(404, "NoSuchUpload", "gone"), freed)
	n, err := s.AbortUploads(t.Context(), "b/", moment)
	if err != nil || n != 3 {
		t.Errorf("%d, %v; want 3", n, err)
	}
	var got []string
	for _, r := range sc.requests() {
		q := r.URL.Query()
		got = append(got, r.Method+" "+r.URL.Path+" "+q.Get("prefix")+q.Get("uploadId")+q.Get("key-marker")+q.Get("upload-id-marker"))
	}
	want := "GET /wal pg/b/; DELETE /wal/pg/b/1 id-pg/b/1; GET /wal pg/b/ku; DELETE /wal/pg/b/6 id-pg/b/6; DELETE /wal/pg/b/7 id-pg/b/7"
	if have := strings.ReplaceAll(strings.Join(got, "; "), "/wal/ ", "/wal "); have != want {
		t.Errorf("requests are\n%s\nwant\n%s", have, want)
	}

	_, s = scripted(t, Config{}, page("", "b/1 "+old, "b/2 "+old), freed, xmlError(403, "AccessDenied", "x"))
	n, err = s.AbortUploads(t.Context(), "b/", moment)
	mustBe(t, "the second abort", err, objstore.ErrDenied)
	if n != 1 {
		t.Errorf("%d were given up, want 1", n)
	}
	_, s = scripted(t, Config{}, xmlError(403, "AccessDenied", "x"))
	_, err = s.AbortUploads(t.Context(), "b/", moment)
	mustBe(t, "the listing", err, objstore.ErrDenied)
	_, s = scripted(t, Config{}, page("<Foo/>"))
	_, err = s.AbortUploads(t.Context(), "b/", moment)
	mustBe(t, "a listing without end", err, nil, "cannot be continued")
}

// TestUploadFaultsOnServer: the faults of the proxy at every request of an
// upload. What a lost answer leaves behind is found and given up.
func TestUploadFaultsOnServer(t *testing.T) {
	server := s3server.Start(t)
	server.MakeBucket(t, "wal")
	proxy := server.Proxy(t)
	as(t, server.AddUserFor(t, "wal", "s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:AbortMultipartUpload", "s3:ListBucketMultipartUploads"))
	s := mustOpen(t, Config{Bucket: "wal", Endpoint: proxy.URL})
	content := []byte(strings.Repeat("0123456789abcdef", objstore.MinPart/16) + "the end")
	for i, at := range []string{"begin", "part", "complete", "look"} {
		for _, fault := range []s3server.Fault{s3server.Unavailable, s3server.LostAnswer, s3server.Reset, s3server.Truncate} {
			t.Run(at+" "+string(fault), func(t *testing.T) {
				defer proxy.Heal()
				inject := func(now, verb string) {
					if now == at {
						proxy.Inject(fault, verb, 1)
					}
				}
				key := fmt.Sprintf("wal_005/%d-%s", i, fault)
				inject("begin", "POST")
				u, err := s.BeginUpload(t.Context(), key)
				if err != nil {
					t.Fatal(err)
				}
				inject("part", "PUT")
				if err := u.Part(t.Context(), 1, 0, objstore.Bytes(content[:objstore.MinPart])); err != nil {
					t.Fatal(err)
				}
				if err := u.Part(t.Context(), 2, objstore.MinPart, objstore.Bytes(content[objstore.MinPart:])); err != nil {
					t.Fatal(err)
				}
				inject("complete", "POST")
				inject("look", "GET")
				if err := u.Complete(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got, err := read(t, s, key); err != nil || got != string(content) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			})
		}
	}
	// The answers to begin that were lost, reset and cut off.
	left, err := s.AbortUploads(t.Context(), "wal_005/", time.Now().Add(time.Hour))
	if err != nil || left < 1 {
		t.Errorf("%d uploads were left behind, %v", left, err)
	}
	out, err := s.api.ListMultipartUploads(t.Context(), &awss3.ListMultipartUploadsInput{Bucket: aws.String("wal")})
	if err != nil || len(out.Uploads) != 0 {
		t.Errorf("uploads are left: %v, %v", out, err)
	}
}

// TestUploadLeastPrivilege: the three-action policy stores objects in parts,
// and frees nothing.
func TestUploadLeastPrivilege(t *testing.T) {
	server := s3server.Start(t)
	server.MakeBucket(t, "wal")
	as(t, server.AddUser(t, "wal"))
	s := mustOpen(t, Config{Bucket: "wal", Prefix: "pg", Endpoint: server.URL})
	begin := func() objstore.Upload {
		u, err := s.BeginUpload(t.Context(), "a")
		if err == nil {
			err = u.Part(t.Context(), 1, 0, objstore.Bytes([]byte("content")))
		}
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	if err := begin().Complete(t.Context()); err != nil {
		t.Error(err)
	}
	mustBe(t, "complete over an object", begin().Complete(t.Context()), objstore.ErrExists)
	mustBe(t, "abort", begin().Abort(t.Context()), objstore.ErrDenied, "abort-upload a")
	_, err := s.AbortUploads(t.Context(), "", time.Now())
	mustBe(t, "abort uploads", err, objstore.ErrDenied, "abort-uploads")
}
