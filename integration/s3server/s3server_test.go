package s3server_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/integration/s3server"
)

func TestServer(t *testing.T) {
	s := s3server.Start(t)
	s.MakeBucket(t, "wal")
	if _, err := os.Stat(filepath.Join(s.Dir, "wal")); err != nil {
		t.Error(err)
	}
	u, v := s.AddUser(t, "wal"), s.AddUser(t, "wal")
	if u == v {
		t.Errorf("two users are %+v", u)
	}
	for range 2 {
		s.Stop(t)
		if _, err := http.Get(s.URL); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a stopped server: %v", err)
		}
		s.Restart(t)
		r, err := http.Get(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Body.Close(); err != nil || r.StatusCode != http.StatusForbidden {
			t.Errorf("an unsigned request: %s, %v", r.Status, err)
		}
	}
}

// behind makes a proxy in front of a server that tells what came.
func behind(t *testing.T, came chan<- string) *s3server.Proxy {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		came <- r.Method + " " + r.Host + r.RequestURI + " " + string(b)
		if _, err := io.WriteString(w, strings.Repeat("x", 1000)); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	return s3server.NewProxy(t, server.URL)
}

// do sends a request and returns status, length of the answer, and the error of
// reading it.
func do(t *testing.T, verb, url, body string) (int, int, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), verb, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	r, err := tr.RoundTrip(req)
	if err != nil {
		return 0, 0, err
	}
	b, err := io.ReadAll(r.Body)
	if cerr := r.Body.Close(); cerr != nil {
		t.Error(cerr)
	}
	return r.StatusCode, len(b), err
}

func TestProxyPassesOn(t *testing.T) {
	came := make(chan string, 1)
	p := behind(t, came)
	path := "/bucket/p/wal_005/a%2Bb?x=1"
	if status, n, err := do(t, "PUT", p.URL+path, "body"); status != 200 || n != 1000 || err != nil {
		t.Errorf("status %d, %d bytes, %v", status, n, err)
	}
	if got, want := <-came, "PUT "+strings.TrimPrefix(p.URL, "http://")+path+" body"; got != want {
		t.Errorf("the server got %q, want %q", got, want)
	}
}

func TestProxyFaults(t *testing.T) {
	for _, test := range []struct {
		fault  s3server.Fault
		verb   string
		seen   bool // by the server
		status int
		failed bool // the exchange
	}{
		{s3server.Unavailable, "PUT", false, 503, false},
		{s3server.ClockSkew, "PUT", false, 403, false},
		{s3server.LostAnswer, "PUT", true, 0, true},
		{s3server.Reset, "PUT", false, 0, true},
		{s3server.Reset, "GET", true, 200, true},
		{s3server.Truncate, "GET", true, 200, true},
	} {
		t.Run(string(test.fault)+" "+test.verb, func(t *testing.T) {
			came := make(chan string, 1)
			p := behind(t, came)
			p.Inject(test.fault, test.verb+" wal_005", 1)
			body := ""
			if test.verb == "PUT" {
				body = strings.Repeat("b", 1000)
			}
			if status, _, err := do(t, "HEAD", p.URL+"/b/other", ""); status != 200 || err != nil {
				t.Errorf("a request that was not meant: %d, %v", status, err)
			}
			<-came
			status, n, err := do(t, test.verb, p.URL+"/b/wal_005/k", body)
			if status != test.status && !(status == 0 && err != nil) || (err != nil) != test.failed {
				t.Errorf("status %d, %d bytes, %v, want status %d, failure %v", status, n, err, test.status, test.failed)
			}
			if test.failed && n >= 1000 {
				t.Errorf("the whole answer came")
			}
			if len(came) == 1 != test.seen {
				t.Errorf("the server saw the request: %v, want %v", !test.seen, test.seen)
			}
			for len(came) > 0 {
				<-came
			}
			if status, n, err := do(t, test.verb, p.URL+"/b/wal_005/k", body); status != 200 || n != 1000 || err != nil {
				t.Errorf("the request after it: %d, %d bytes, %v", status, n, err)
			}
			if got := p.Counts(); got["HEAD"] != 1 || got[test.verb+" wal_005"] != 2 {
				t.Errorf("counts are %v", got)
			}
			p.ResetCounts()
			if got := p.Counts(); len(got) != 0 {
				t.Errorf("counts begin anew with %v", got)
			}
		})
	}
}

func TestProxyBlackHole(t *testing.T) {
	came := make(chan string, 4)
	p := behind(t, came)
	p.Inject(s3server.BlackHole, "", -1)
	failed := make(chan error, 2)
	for range 2 {
		go func() {
			_, _, err := do(t, "GET", p.URL+"/b/wal_tail_005/k", "")
			failed <- err
		}()
	}
	for p.Counts()["GET wal_tail_005"] < 2 {
		select {
		case err := <-failed:
			t.Fatalf("an answer came out of a black hole: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	p.Heal()
	for range 2 {
		if err := <-failed; err == nil {
			t.Error("an answer came out of a black hole")
		}
	}
	p.Slow(time.Millisecond)
	if status, n, err := do(t, "GET", p.URL+"/b?list-type=2&prefix=p/wal_005/", ""); status != 200 || n != 1000 || err != nil {
		t.Errorf("after it was healed: %d, %d bytes, %v", status, n, err)
	}
	if got := p.Counts()["LIST wal_005"]; got != 1 {
		t.Errorf("counts are %v", p.Counts())
	}
}

// TestProxyBetween: nothing is under way between requests.
func TestProxyBetween(t *testing.T) {
	came := make(chan string, 1)
	p := behind(t, came)
	p.Slow(50 * time.Millisecond)
	answered := make(chan error, 1)
	go func() {
		_, _, err := do(t, "GET", p.URL+"/b/k", "")
		answered <- err
	}()
	for p.Counts()["GET"] == 0 {
		time.Sleep(time.Millisecond)
	}
	p.Between(func() {
		if len(came) != 1 {
			t.Error("a request is still under way")
		}
		p.Slow(0)
		go func() {
			_, _, err := do(t, "GET", p.URL+"/b/k", "")
			answered <- err
		}()
		time.Sleep(50 * time.Millisecond)
		if p.Counts()["GET"] != 1 {
			t.Error("a request was let in")
		}
		<-came
	})
	for range 2 {
		if err := <-answered; err != nil {
			t.Error(err)
		}
	}
	if len(came) != 1 {
		t.Error("the second request did not come")
	}
}

// TestProxyWatch: what the server has answered is known, also when the client
// does not get it; what it has not seen is not.
func TestProxyWatch(t *testing.T) {
	p := behind(t, make(chan string, 4))
	seen := make(chan string, 4)
	p.Watch(func(r *http.Request, status int) { seen <- r.Method + " " + r.URL.Path + " " + http.StatusText(status) })
	p.Inject(s3server.LostAnswer, "PUT", 1)
	p.Inject(s3server.Unavailable, "PUT", 1)
	p.Inject(s3server.Reset, "PUT", 1)
	for i := range 4 {
		if _, _, err := do(t, "PUT", p.URL+"/b/wal_005/k"+string(rune('0'+i)), "body"); (err != nil) != (i == 0 || i == 2) {
			t.Errorf("request %d: %v", i, err)
		}
	}
	close(seen)
	var all []string
	for s := range seen {
		all = append(all, s)
	}
	if got, want := strings.Join(all, ", "), "PUT /b/wal_005/k0 OK, PUT /b/wal_005/k3 OK"; got != want {
		t.Errorf("it was told of %s, want %s", got, want)
	}
}

// TestProxyClientGoesAway: what a client has sent whole is done, and known,
// though it does not wait for the answer; what it has not is not.
func TestProxyClientGoesAway(t *testing.T) {
	came, answer := make(chan string, 4), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err == nil {
			came <- r.URL.Path
			select {
			case <-answer:
			case <-r.Context().Done():
				t.Error("the server was told that the client is gone")
			}
		}
	}))
	t.Cleanup(server.Close)
	p := s3server.NewProxy(t, server.URL)
	seen := make(chan string, 4)
	p.Watch(func(r *http.Request, status int) { seen <- r.URL.Path })
	for _, length := range []string{"8", "4"} {
		c, err := net.Dial("tcp", strings.TrimPrefix(p.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "PUT /b/"+length+" HTTP/1.1\r\nHost: h\r\nContent-Length: "+length+"\r\n\r\nbody"); err != nil {
			t.Fatal(err)
		}
		if length == "4" {
			<-came
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(100 * time.Millisecond) // for the proxy to notice
	close(answer)
	if got := <-seen; got != "/b/4" {
		t.Errorf("the server has answered for %s", got)
	}
	if len(seen)+len(came) > 0 {
		t.Error("the server has got what was not sent whole")
	}
}

// TestProxyCatch: one request of many is stopped, before the server sees it or
// when it has done what it was told; the others go their way.
func TestProxyCatch(t *testing.T) {
	for fault, want := range map[s3server.Fault]int{s3server.BlackHole: 2, s3server.Withhold: 3} {
		came := make(chan string, 4)
		p := behind(t, came)
		caught := p.Catch(fault, "PUT wal_005", 2)
		put := func() error {
			_, _, err := do(t, "PUT", p.URL+"/b/wal_005/k", "body")
			return err
		}
		if err := put(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-caught:
			t.Errorf("%s: the first request was caught", fault)
		default:
		}
		failed := make(chan error, 1)
		go func() { failed <- put() }()
		<-caught
		if err := put(); err != nil {
			t.Errorf("%s: the third request: %v", fault, err)
		}
		if len(came) != want {
			t.Errorf("%s: the server has seen %d requests, want %d", fault, len(came), want)
		}
		p.Heal()
		if err := <-failed; err == nil {
			t.Errorf("%s: the request that was caught was answered", fault)
		}
	}
}

// TestProxyClock: a store that is an hour ahead says so.
func TestProxyClock(t *testing.T) {
	p := behind(t, make(chan string, 1))
	p.Inject(s3server.ClockSkew, "", 1)
	r, err := http.Get(p.URL + "/b/k")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r.Body)
	if err = errors.Join(err, r.Body.Close()); err != nil || !strings.Contains(string(b), "<Code>RequestTimeTooSkewed</Code>") {
		t.Errorf("the answer is %q (%v)", b, err)
	}
	there, err := http.ParseTime(r.Header.Get("Date"))
	if ahead := time.Until(there); err != nil || ahead < 30*time.Minute {
		t.Errorf("the store's clock is %v ahead (%v)", ahead, err)
	}
}

// TestProxyWithoutServer: a server that is away is a reset connection.
func TestProxyWithoutServer(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	p := s3server.NewProxy(t, server.URL)
	if _, _, err := do(t, "GET", p.URL+"/b/k", ""); err == nil {
		t.Error("an answer came from a server that is away")
	}
}
