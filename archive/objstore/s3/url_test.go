package s3

import (
	"testing"
)

// A URL says everything that a Config says.
func TestURLRoundTrip(t *testing.T) {
	for _, c := range []Config{
		{Bucket: "acme-wal"},
		{Bucket: "acme-wal", Prefix: "db1"},
		{Bucket: "acme-wal", Prefix: "a b/100%/ü?#&="},
		{Bucket: "acme-wal", Prefix: "db1", Region: "eu-central-1", Endpoint: "https://s3.example.com:9000/path", PathStyle: true,
			Profile: "wal profile", CredentialsFile: "/var/lib/postgresql/.aws/credentials", SSE: "aws:kms", SSEKMSKeyID: "arn:aws:kms:eu:1:key/a&b=c+d",
			StorageClass: "STANDARD_IA", CAFile: "/etc/ssl/our ca.pem"},
	} {
		text := c.URL()
		got, err := ParseURL(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got != c {
			t.Errorf("%s is read as %+v, not %+v", text, got, c)
		}
	}
}

// What the environment said is in the settings of an open store.
func TestSettingsHaveTheEnvironment(t *testing.T) {
	t.Setenv("AWS_REGION", "eu-west-3")
	t.Setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	s, err := Open(t.Context(), Config{Bucket: "acme-wal", Prefix: "db1"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if got, want := s.Settings().URL(), "s3://acme-wal/db1?endpoint=http%3A%2F%2F127.0.0.1%3A1&region=eu-west-3"; got != want {
		t.Errorf("the settings are %s, want %s", got, want)
	}
}
