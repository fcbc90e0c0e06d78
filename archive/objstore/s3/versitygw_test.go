package s3

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/storetest"
	"github.com/walferry/walferry/integration/s3server"
)

// cleanEnv takes away what the caller's environment says to AWS tools, except
// AWS_CA_BUNDLE: it must not keep a client from starting.
func cleanEnv(t *testing.T) {
	t.Helper()
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, "AWS_") && name != "AWS_CA_BUNDLE" {
			t.Setenv(name, "") // restores it afterwards
			if err := os.Unsetenv(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The SDK finds out about HOME once, when the program starts.
	none := filepath.Join(t.TempDir(), "none")
	t.Setenv("AWS_CONFIG_FILE", none)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", none)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

// as makes the environment that of u.
func as(t *testing.T, u s3server.User) {
	t.Helper()
	cleanEnv(t)
	t.Setenv("AWS_ACCESS_KEY_ID", u.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", u.SecretKey)
}

func mustOpen(t *testing.T, c Config) *Store {
	t.Helper()
	s, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestStoreOnServer(t *testing.T) {
	server := s3server.Start(t)
	var buckets atomic.Int64
	for _, prefix := range []string{"", "pg/prod"} {
		t.Run("prefix "+prefix, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) objstore.Store {
				bucket := fmt.Sprintf("wal-%d", buckets.Add(1))
				server.MakeBucket(t, bucket)
				as(t, server.AddUserFor(t, bucket, "s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListBucketMultipartUploads"))
				return mustOpen(t, Config{Bucket: bucket, Prefix: prefix, Endpoint: server.URL})
			})
		})
	}
}

func read(t *testing.T, s *Store, key string) (string, error) {
	t.Helper()
	r, _, err := s.Get(t.Context(), key)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(r)
	if cerr := r.Close(); cerr != nil {
		t.Errorf("close %s: %v", key, cerr)
	}
	return string(b), err
}

func list(t *testing.T, s *Store, opts objstore.ListOptions) ([]string, error) {
	t.Helper()
	var found []string
	for info, err := range s.List(t.Context(), opts) {
		if err != nil {
			return found, err
		}
		found = append(found, info.Key)
	}
	return found, nil
}

func put(t *testing.T, s *Store, key, content string) error {
	t.Helper()
	return s.PutIfAbsent(t.Context(), key, objstore.Bytes([]byte(content)))
}

// mustBe checks what an error lets conclude, and its form.
func mustBe(t *testing.T, what string, err, want error, words ...string) {
	t.Helper()
	if err == nil || want != nil && !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
		return
	}
	for _, other := range []error{objstore.ErrNotFound, objstore.ErrExists, objstore.ErrNoStore, objstore.ErrDenied, objstore.ErrConditionIgnored} {
		if !errors.Is(want, other) && errors.Is(err, other) {
			t.Errorf("%s: %v is %q, want %v alone", what, err, other, want)
		}
	}
	text := err.Error()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%s: %q does not say %q", what, text, word)
		}
	}
	for _, noise := range []string{"\n", "operation error", "https response error", "StatusCode", "RequestID:", "api error", "exceeded maximum", "get identity", "secret"} {
		if strings.Contains(text, noise) {
			t.Errorf("%s: %q holds %q", what, text, noise)
		}
	}
}

// TestLeastPrivilege: what the three-action policy allows, and what is said
// about the rest.
func TestLeastPrivilege(t *testing.T) {
	server := s3server.Start(t)
	server.MakeBucket(t, "wal")
	server.MakeBucket(t, "other")
	user := server.AddUser(t, "wal")
	as(t, user)
	s := mustOpen(t, Config{Bucket: "wal", Prefix: "pg", Endpoint: server.URL})
	if err := put(t, s, "wal_005/a", "1"); err != nil {
		t.Fatal(err)
	}
	mustBe(t, "put again", put(t, s, "wal_005/a", "2"), objstore.ErrExists, "wal_005/a")
	if got, err := read(t, s, "wal_005/a"); err != nil || got != "1" {
		t.Errorf("get: %q, %v", got, err)
	}
	_, err := read(t, s, "wal_005/b")
	mustBe(t, "get of an absent object", err, objstore.ErrNotFound, "get wal_005/b", "NoSuchKey")
	if got, err := list(t, s, objstore.ListOptions{Prefix: "wal_005/"}); err != nil || len(got) != 1 {
		t.Errorf("list: %q, %v", got, err)
	}
	mustBe(t, "delete", s.Delete(t.Context(), "wal_005/a"), objstore.ErrDenied, "delete wal_005/a", "AccessDenied", "403")

	for bucket, want := range map[string]error{"other": objstore.ErrDenied, "nowhere": objstore.ErrNoStore} {
		s := mustOpen(t, Config{Bucket: bucket, Endpoint: server.URL})
		_, getErr := read(t, s, "wal_005/a")
		_, listErr := list(t, s, objstore.ListOptions{})
		_, _, rangeErr := s.GetRange(t.Context(), "wal_005/a", 0, 1)
		mustBe(t, bucket+" get", getErr, want)
		mustBe(t, bucket+" range", rangeErr, want)
		mustBe(t, bucket+" list", listErr, want)
		mustBe(t, bucket+" put", put(t, s, "wal_005/a", "1"), want)
	}
	for what, keys := range map[string]s3server.User{
		"InvalidAccessKeyId":    {AccessKey: "nobody", SecretKey: "hunter2hunter2"},
		"SignatureDoesNotMatch": {AccessKey: user.AccessKey, SecretKey: "hunter2hunter2"},
	} {
		as(t, keys)
		s := mustOpen(t, Config{Bucket: "wal", Endpoint: server.URL})
		_, getErr := read(t, s, "wal_005/a")
		_, listErr := list(t, s, objstore.ListOptions{})
		for _, err := range []error{getErr, listErr, put(t, s, "wal_005/c", "1")} {
			mustBe(t, what, err, objstore.ErrDenied, what)
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v holds the key", err)
			}
		}
	}
}

func TestWithoutCredentials(t *testing.T) {
	cleanEnv(t)
	s := mustOpen(t, Config{Bucket: "wal", Endpoint: "http://127.0.0.1:1"})
	_, err := read(t, s, "wal_005/a")
	mustBe(t, "no credentials", err, objstore.ErrDenied, "no AWS credentials found", "AWS_ACCESS_KEY_ID")
}

// TestFaultsOnServer: every fault of the proxy, at every kind of request.
func TestFaultsOnServer(t *testing.T) {
	server := s3server.Start(t)
	server.MakeBucket(t, "wal")
	proxy := server.Proxy(t)
	as(t, server.AddUser(t, "wal"))
	s := mustOpen(t, Config{Bucket: "wal", Endpoint: proxy.URL})
	content := strings.Repeat("0123456789abcdef", 1<<18) // 4 MiB: beyond what asks for 100-continue first

	proxy.Inject(s3server.Unavailable, "PUT", 2)
	if err := put(t, s, "wal_005/a", content); err != nil {
		t.Errorf("put, two times 503: %v", err)
	}
	if n := proxy.Counts()["PUT wal_005"]; n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
	proxy.Inject(s3server.Reset, "PUT", 1)
	if err := put(t, s, "wal_005/b", content); err != nil {
		t.Errorf("put, reset in mid-body: %v", err)
	}
	proxy.Inject(s3server.LostAnswer, "PUT", 1)
	mustBe(t, "put, lost answer", put(t, s, "wal_005/c", content), objstore.ErrExists)
	for _, key := range []string{"wal_005/a", "wal_005/b", "wal_005/c"} {
		if got, err := read(t, s, key); err != nil || got != content {
			t.Errorf("%s: %d bytes, %v", key, len(got), err)
		}
	}
	for _, fault := range []s3server.Fault{s3server.Reset, s3server.Truncate} {
		proxy.Inject(fault, "GET", 1)
		got, err := read(t, s, "wal_005/a")
		mustBe(t, string(fault), err, io.ErrUnexpectedEOF, "read wal_005/a", fmt.Sprintf("after %d of %d bytes", len(got), len(content)))
	}
	proxy.Inject(s3server.Unavailable, "", -1)
	_, getErr := read(t, s, "wal_005/a")
	_, listErr := list(t, s, objstore.ListOptions{})
	for _, err := range []error{getErr, listErr, put(t, s, "wal_005/d", "1")} {
		mustBe(t, "503 without end", err, nil, "SlowDown", "503")
	}
	proxy.Heal()
	proxy.Inject(s3server.Truncate, "LIST", 1)
	if got, err := list(t, s, objstore.ListOptions{}); err != nil || len(got) != 3 {
		t.Errorf("list, cut off once: %q, %v", got, err)
	}

	server.Stop(t)
	_, err := read(t, s, "wal_005/a")
	mustBe(t, "server away", err, nil, "get wal_005/a: no answer from "+proxy.URL)
	server.Restart(t)
	if got, err := read(t, s, "wal_005/a"); err != nil || got != content {
		t.Errorf("after the server came back: %d bytes, %v", len(got), err)
	}
}

// TestSharedFiles: what a user of AWS tools has: a default and a named profile,
// the region in the config file alone.
func TestSharedFiles(t *testing.T) {
	server := s3server.Start(t)
	server.MakeBucket(t, "wal")
	user := server.AddUser(t, "wal")
	cleanEnv(t)
	aws := filepath.Join(t.TempDir(), ".aws")
	credentials := "[default]\naws_access_key_id = nobody\naws_secret_access_key = hunter2hunter2\n\n[backup]\naws_access_key_id = " +
		user.AccessKey + "\naws_secret_access_key = " + user.SecretKey + "\n"
	config := "[default]\nregion = us-east-1\n\n[profile backup]\nregion = us-east-1\nendpoint_url = " + server.URL + "\n"
	elsewhere := filepath.Join(t.TempDir(), "keys")
	if err := errors.Join(os.Mkdir(aws, 0o700),
		os.WriteFile(filepath.Join(aws, "credentials"), []byte(credentials), 0o600),
		os.WriteFile(filepath.Join(aws, "config"), []byte(config), 0o600),
		os.WriteFile(elsewhere, []byte("[default]\naws_access_key_id = "+user.AccessKey+"\naws_secret_access_key = "+user.SecretKey+"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(aws, "config"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(aws, "credentials"))
	if err := put(t, mustOpen(t, Config{Bucket: "wal", Profile: "backup"}), "named", ""); err != nil {
		t.Errorf("named profile with its endpoint: %v", err)
	}
	mustBe(t, "default profile", put(t, mustOpen(t, Config{Bucket: "wal", Endpoint: server.URL}), "default", ""), objstore.ErrDenied)
	if err := put(t, mustOpen(t, Config{Bucket: "wal", Endpoint: server.URL, CredentialsFile: elsewhere}), "elsewhere", ""); err != nil {
		t.Errorf("other credentials file: %v", err)
	}
	t.Setenv("AWS_PROFILE", "backup")
	s := mustOpen(t, Config{Bucket: "wal"})
	if err := put(t, s, "variable", ""); err != nil {
		t.Errorf("AWS_PROFILE: %v", err)
	}
	if s.cfg.Region != "us-east-1" || s.follow {
		t.Errorf("region is %q, found out: %v, want that of the profile", s.cfg.Region, s.follow)
	}
	for what, c := range map[string]Config{
		"no profile":          {Bucket: "wal", Profile: "nobody's"},
		"no credentials file": {Bucket: "wal", CredentialsFile: filepath.Join(aws, "nowhere")},
	} {
		_, err := Open(t.Context(), c)
		mustBe(t, what, err, nil, "open s3://wal")
	}
	t.Setenv("AWS_PROFILE", "")
	t.Setenv("AWS_CA_BUNDLE", filepath.Join(aws, "nowhere"))
	_, err := Open(t.Context(), Config{Bucket: "wal"})
	mustBe(t, "no CA bundle", err, nil, "open s3://wal", "nowhere")
}
