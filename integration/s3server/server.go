// Package s3server runs a real S3 server (versitygw) for tests, with users and
// policies, and a proxy in front of it that misbehaves as networks and stores
// do.
//
//	s := s3server.Start(t)
//	s.MakeBucket(t, "wal")
//	user := s.AddUser(t, "wal")    // may get, put and list, and nothing else
//	p := s.Proxy(t)                // p.URL is the endpoint to use
//	p.Fail(3)                      // the next three requests get 503
//
// The server's program is $WALFERRY_VERSITYGW, else versitygw in PATH, else
// that in GOPATH/bin; without one the test is skipped, and says so.
// integration/tools/versitygw.sh builds it.
package s3server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"go/build"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// User is somebody whom the server knows.
type User struct {
	AccessKey, SecretKey string
}

// Env is the environment in which AWS tools are this user.
func (u User) Env() []string {
	return []string{"AWS_ACCESS_KEY_ID=" + u.AccessKey, "AWS_SECRET_ACCESS_KEY=" + u.SecretKey}
}

// Server is a running S3 server. It ends with the test.
type Server struct {
	URL    string // http://127.0.0.1:PORT; stays the same over Stop and Start
	CAFile string // of the server's certificate; "": it speaks no TLS
	Root   User   // may do everything
	Dir    string // holds a directory for every bucket, objects as files in it

	program string
	iam     string
	address string
	tls     []string // of the server's command line
	users   atomic.Int64

	mu  sync.Mutex
	cmd *exec.Cmd     // nil while it is stopped; guarded by mu
	out *bytes.Buffer // of the running server; read when it has ended
}

// Program finds the server's program. The error says where it was looked for.
func Program() (string, error) {
	if p := os.Getenv("WALFERRY_VERSITYGW"); p != "" {
		if _, err := os.Stat(p); err != nil {
			return "", fmt.Errorf("WALFERRY_VERSITYGW: %w", err)
		}
		return p, nil
	}
	if p, err := exec.LookPath("versitygw"); err == nil {
		return p, nil
	}
	for _, dir := range filepath.SplitList(build.Default.GOPATH) {
		p := filepath.Join(dir, "bin", "versitygw")
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", errors.New("there is no versitygw in WALFERRY_VERSITYGW, PATH or GOPATH/bin")
}

// Start starts an empty server on a free port of the loopback interface.
func Start(t testing.TB) *Server {
	t.Helper()
	program, err := Program()
	if err != nil {
		t.Skipf("SKIPPED: NOT TESTED ON A REAL S3 SERVER: %v (integration/tools/versitygw.sh builds it)", err)
	}
	base := t.TempDir()
	s := &Server{
		Root: User{AccessKey: "root-access", SecretKey: "root-secret-5f9a"},
		Dir:  filepath.Join(base, "buckets"), iam: filepath.Join(base, "iam"),
		program: program, address: freeAddress(t),
	}
	s.URL = "http://" + s.address
	if err := errors.Join(os.Mkdir(s.Dir, 0o700), os.Mkdir(s.iam, 0o700)); err != nil {
		t.Fatal(err)
	}
	s.Restart(t)
	t.Cleanup(func() { s.Stop(t) })
	return s
}

// freeAddress finds a port that nobody listens on. Somebody else may take it
// before the server does; then Restart fails, and says so.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

// Restart starts the server again after Stop, with all that it held, and waits
// until it answers.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		t.Fatal("the S3 server runs already")
	}
	s.out = &bytes.Buffer{}
	args := append([]string{"--quiet", "--keep-alive", "--port", s.address, "--iam-dir", s.iam}, s.tls...)
	cmd := exec.Command(s.program, append(args, "posix", s.Dir)...)
	cmd.Env = []string{"ROOT_ACCESS_KEY=" + s.Root.AccessKey, "ROOT_SECRET_KEY=" + s.Root.SecretKey, "PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Dir(s.Dir)}
	cmd.Stdout, cmd.Stderr = s.out, s.out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", s.program, err)
	}
	s.cmd = cmd
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", s.address); err == nil {
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			return
		}
		if time.Now().After(deadline) {
			s.stop(t)
			t.Fatalf("the S3 server does not answer on %s:\n%s", s.address, s.out)
		}
	}
}

// Secure starts the server again with TLS, and a certificate of its own. What
// has to be made by its administrator is made before.
func (s *Server) Secure(t testing.TB) {
	t.Helper()
	s.Stop(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "walferry's tests"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s.CAFile = filepath.Join(filepath.Dir(s.Dir), "server.crt")
	keyFile := filepath.Join(filepath.Dir(s.Dir), "server.key")
	if err := errors.Join(
		os.WriteFile(s.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	s.tls = []string{"--cert", s.CAFile, "--key", keyFile}
	s.URL = "https://" + s.address
	s.Restart(t)
}

// Stop kills the server: connections to it are refused. What it holds stays.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop(t)
}

func (s *Server) stop(t testing.TB) {
	t.Helper()
	if s.cmd == nil {
		return
	}
	if err := s.cmd.Process.Kill(); err != nil {
		t.Errorf("kill the S3 server: %v\n%s", err, s.out)
	}
	var exit *exec.ExitError
	if err := s.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Errorf("wait for the S3 server: %v", err)
	}
	s.cmd = nil
}

// Pid returns the number of the server's process, 0 when it is stopped.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// client is the root user's.
func (s *Server) client() *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: &s.URL, Region: "us-east-1", UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(s.Root.AccessKey, s.Root.SecretKey, ""),
		// Not the default client, which keeps idle connections, and not a pool
		// of our own: what is done here is done a few times a test.
		HTTPClient: awshttp.NewBuildableClient().WithTransportOptions(func(tr *http.Transport) { tr.DisableKeepAlives = true }),
	})
}

// MakeBucket makes a bucket.
func (s *Server) MakeBucket(t testing.TB, name string) {
	t.Helper()
	if _, err := s.client().CreateBucket(context.WithoutCancel(t.Context()), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatalf("make bucket %s: %v", name, err)
	}
}

// Uploads lists the keys of the multipart uploads that were begun in a bucket and
// neither completed nor given up.
func (s *Server) Uploads(t testing.TB, bucket string) (keys []string) {
	t.Helper()
	out, err := s.client().ListMultipartUploads(context.WithoutCancel(t.Context()), &s3.ListMultipartUploadsInput{Bucket: &bucket})
	if err != nil {
		t.Fatalf("list the uploads of bucket %s: %v", bucket, err)
	}
	for _, u := range out.Uploads {
		keys = append(keys, aws.ToString(u.Key))
	}
	return keys
}

// AddUser makes a user whom the bucket's policy allows exactly what walferry
// needs: GetObject and PutObject on every key, ListBucket. It replaces the policy:
// the user added last is the one.
func (s *Server) AddUser(t testing.TB, bucket string) User {
	t.Helper()
	return s.AddUserFor(t, bucket, "s3:GetObject", "s3:PutObject", "s3:ListBucket")
}

// AddUserFor makes a user whom the bucket's policy allows these actions alone.
func (s *Server) AddUserFor(t testing.TB, bucket string, actions ...string) User {
	t.Helper()
	n := s.users.Add(1)
	u := User{AccessKey: fmt.Sprintf("user-access-%d", n), SecretKey: fmt.Sprintf("user-secret-%d-c0ffee", n)}
	ctx := context.WithoutCancel(t.Context())
	// Its keys are on the command line of a child; they open a throw-away server.
	cmd := exec.CommandContext(ctx, s.program, "admin", "--endpoint-url", s.URL, "--access", s.Root.AccessKey, "--secret", s.Root.SecretKey,
		"create-user", "--access", u.AccessKey, "--secret", u.SecretKey, "--role", "user")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make user: %v\n%s", err, out)
	}
	s.SetPolicy(t, bucket, u, actions...)
	return u
}

// SetPolicy makes the bucket's policy allow these actions to u, and nothing to
// others but the root user.
func (s *Server) SetPolicy(t testing.TB, bucket string, u User, actions ...string) {
	t.Helper()
	type statement struct {
		Effect, Principal, Resource string
		Action                      []string
	}
	var statements []statement
	for _, action := range actions {
		resource := "arn:aws:s3:::" + bucket
		if strings.HasSuffix(action, "Object") || action == "s3:AbortMultipartUpload" {
			resource += "/*"
		}
		statements = append(statements, statement{"Allow", u.AccessKey, resource, []string{action}})
	}
	policy, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": statements})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.client().PutBucketPolicy(context.WithoutCancel(t.Context()), &s3.PutBucketPolicyInput{Bucket: &bucket, Policy: aws.String(string(policy))})
	if err != nil {
		t.Fatalf("set the policy of %s: %v", bucket, err)
	}
}
