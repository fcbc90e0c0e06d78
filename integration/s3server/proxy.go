package s3server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// Fault is what the proxy does to a request instead of passing it on.
type Fault string

// The faults.
const (
	// Unavailable answers 503 SlowDown; the server does not see the request.
	Unavailable Fault = "unavailable"
	// LostAnswer passes the request on and, when the server has answered,
	// closes the connection: what was to be done is done.
	LostAnswer Fault = "lost answer"
	// Reset resets the connection in the middle of the body: of the
	// request's, of which the server sees nothing, or of the answer's.
	Reset Fault = "reset"
	// Truncate ends the answer's body in the middle, with a clean close.
	Truncate Fault = "truncate"
	// BlackHole takes the request and never answers.
	BlackHole Fault = "black hole"
	// Withhold passes the request on and, when the server has answered it,
	// keeps that for itself: what is to be done is done, and the client waits.
	Withhold Fault = "withhold"
	// ClockSkew answers 403 RequestTimeTooSkewed, with a Date an hour ahead:
	// the store's clock is, or the client's is behind.
	ClockSkew Fault = "clock skew"
)

// Proxy stands in front of an S3 server, and misbehaves when it is told to. It
// is safe for concurrent use.
//
// Requests are named "PUT wal_005": the verb, LIST for listings, and the first
// part of the key that ends in _005 (for listings: of the prefix), or the verb
// alone where there is none.
type Proxy struct {
	URL string // the endpoint that clients use instead of the server's

	target string
	client *http.Client
	moving sync.RWMutex // read-locked by every request

	mu     sync.Mutex
	faults []*rule                           // guarded by mu
	slow   time.Duration                     // guarded by mu
	counts map[string]int                    // guarded by mu
	hole   chan struct{}                     // closed when black holes give up; guarded by mu
	watch  func(r *http.Request, status int) // guarded by mu
}

type rule struct {
	fault  Fault
	match  string
	skip   int // requests that pass before
	left   int // requests; negative: no end
	caught chan struct{}
}

// Proxy starts a proxy in front of s. It ends with the test.
func (s *Server) Proxy(t testing.TB) *Proxy {
	t.Helper()
	return NewProxy(t, s.URL)
}

// NewProxy starts a proxy in front of any server at the URL target.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	p := &Proxy{
		target: target,
		counts: map[string]int{},
		hole:   make(chan struct{}),
		client: &http.Client{
			Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 32},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	server := httptest.NewServer(p)
	p.URL = server.URL
	t.Cleanup(func() {
		p.Heal()
		server.CloseClientConnections()
		server.Close()
		p.client.CloseIdleConnections()
	})
	return p
}

// Fail lets the next n requests fail with 503.
func (p *Proxy) Fail(n int) { p.Inject(Unavailable, "", n) }

// Inject does fault to the next n requests whose name contains match ("" is
// every one). A negative n has no end: until Heal. Several are used up in the
// order in which they were injected.
func (p *Proxy) Inject(fault Fault, match string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = append(p.faults, &rule{fault: fault, match: match, left: n})
}

// Catch does fault to one request: of those from now on whose name contains
// match the one with the number nth, from 1 on. The channel is closed when that
// request has come, and with Withhold when the server has answered it: then a
// client can be killed at a stage of its work that is known.
func (p *Proxy) Catch(fault Fault, match string, nth int) (caught <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := &rule{fault: fault, match: match, skip: nth - 1, left: 1, caught: make(chan struct{})}
	p.faults = append(p.faults, r)
	return r.caught
}

// Between runs do while no request is under way: those under way are answered
// before, later ones come after it. So a fault that do injects, or a change of
// the server, falls into no request's middle. Not while there is a black hole.
func (p *Proxy) Between(do func()) {
	p.moving.Lock()
	defer p.moving.Unlock()
	do()
}

// Watch lets f know of every answer of the server, before the client gets it or
// loses it: what a request that was answered with success has stored is there.
// f is called by several goroutines at a time, and must not keep the request.
func (p *Proxy) Watch(f func(r *http.Request, status int)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watch = f
}

// Slow makes every request wait so long before it is passed on; 0 ends it.
func (p *Proxy) Slow(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slow = d
}

// Heal ends all faults; requests in a black hole get their connection closed.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults, p.slow = nil, 0
	close(p.hole)
	p.hole = make(chan struct{})
}

// Counts returns how many requests of each name came, those included that a
// fault was done to.
func (p *Proxy) Counts() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.counts)
}

// ResetCounts begins to count anew.
func (p *Proxy) ResetCounts() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.counts)
}

func requestName(r *http.Request) string {
	verb, path := r.Method, r.URL.Path
	if r.URL.Query().Get("list-type") == "2" {
		verb, path = "LIST", r.URL.Query().Get("prefix")
	}
	for part := range strings.SplitSeq(path, "/") {
		if strings.HasSuffix(part, "_005") {
			return verb + " " + part
		}
	}
	return verb
}

// fate is what becomes of a request.
type fate struct {
	fault Fault
	slow  time.Duration
	hole  <-chan struct{} // closed when black holes give up
	tell  func()          // that it has come as far as Catch promises
}

// take counts a request and says what to do with it.
func (p *Proxy) take(r *http.Request) fate {
	name := requestName(r)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts[name]++
	this := fate{slow: p.slow, hole: p.hole, tell: func() {}}
	for _, f := range p.faults {
		if f.left == 0 || !strings.Contains(name, f.match) {
			continue
		}
		if f.skip > 0 {
			f.skip--
			continue
		}
		f.left--
		this.fault = f.fault
		if f.caught != nil { // of one request alone
			this.tell = func() { close(f.caught) }
		}
		break
	}
	return this
}

// ServeHTTP passes a request on.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.moving.RLock()
	defer p.moving.RUnlock()
	f := p.take(r)
	if f.slow > 0 {
		select {
		case <-time.After(f.slow):
		case <-r.Context().Done():
		}
	}
	if f.fault != Withhold {
		f.tell()
	}
	switch f.fault {
	case Unavailable:
		refuse(w, http.StatusServiceUnavailable, "SlowDown", "Please reduce your request rate.")
	case ClockSkew:
		w.Header().Set("Date", time.Now().UTC().Add(time.Hour).Format(http.TimeFormat))
		refuse(w, http.StatusForbidden, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.")
	case BlackHole:
		<-f.hole
		panic(http.ErrAbortHandler)
	case Reset:
		if r.ContentLength > 0 {
			// Half of the body is read, so that the client is in its middle.
			_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
			reset(w)
			return
		}
		p.pass(w, r, f)
	default:
		p.pass(w, r, f)
	}
}

// refuse answers as S3 does.
func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	// A client that is gone needs no answer.
	_, _ = fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>%s</Message><RequestId>proxy</RequestId></Error>`, code, message)
}

// pass sends the request to the server and the answer back.
func (p *Proxy) pass(w http.ResponseWriter, r *http.Request, f fate) {
	// A client that goes away when it has sent everything takes nothing back:
	// what the server answers is seen all the same.
	out, err := http.NewRequestWithContext(context.WithoutCancel(r.Context()), r.Method, p.target+r.URL.RequestURI(), r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	out.URL = &url.URL{Scheme: out.URL.Scheme, Host: out.URL.Host, Opaque: out.URL.Opaque, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
	out.Header = r.Header.Clone()
	out.Header.Del("Connection")
	out.Host = r.Host // it is signed
	out.ContentLength = r.ContentLength
	if r.ContentLength == 0 {
		out.Body = http.NoBody
	}
	in, err := p.client.Do(out)
	if err != nil {
		// The server is away: so are we, as far as the client can see.
		reset(w)
		return
	}
	defer func() { _ = in.Body.Close() }() // read to its end, or given up with the connection
	p.mu.Lock()
	watch := p.watch
	p.mu.Unlock()
	if watch != nil {
		watch(r, in.StatusCode)
	}
	switch f.fault {
	case Withhold:
		f.tell()
		<-f.hole
		panic(http.ErrAbortHandler)
	case LostAnswer:
		_, _ = io.Copy(io.Discard, in.Body)
		panic(http.ErrAbortHandler)
	}
	maps.Copy(w.Header(), in.Header)
	w.WriteHeader(in.StatusCode)
	switch f.fault {
	case Reset, Truncate:
		_, _ = io.CopyN(w, in.Body, max(in.ContentLength/2, 1))
		if err := http.NewResponseController(w).Flush(); err != nil {
			panic(http.ErrAbortHandler)
		}
		if f.fault == Reset {
			reset(w)
			return
		}
		panic(http.ErrAbortHandler) // closes the connection
	}
	if _, err := io.Copy(w, in.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// reset ends the client's connection with a TCP reset.
func reset(w http.ResponseWriter) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		err = tcp.SetLinger(0)
	}
	err = errors.Join(err, c.Close())
	if err != nil && !errors.Is(err, net.ErrClosed) { // at the test's end all are closed
		panic(fmt.Sprintf("reset a connection: %v", err))
	}
}
