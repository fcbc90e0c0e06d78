package s3

import (
	"strings"
	"testing"
)

func TestParseURL(t *testing.T) {
	for text, want := range map[string]Config{
		"s3://wal":               {Bucket: "wal"},
		"s3://wal/":              {Bucket: "wal"},
		"s3://my.wal-1/pg/prod/": {Bucket: "my.wal-1", Prefix: "pg/prod"},
		"s3://wal/a%20b%2Bc":     {Bucket: "wal", Prefix: "a b+c"},
		"s3://wal/pg?region=eu-central-1&endpoint=http://127.0.0.1:7070&path_style=true&profile=backup": {
			Bucket: "wal", Prefix: "pg", Region: "eu-central-1", Endpoint: "http://127.0.0.1:7070", PathStyle: true, Profile: "backup"},
		"s3://wal?path_style=false&storage_class=STANDARD_IA&ca_file=/etc/ca.pem": {Bucket: "wal", StorageClass: "STANDARD_IA", CAFile: "/etc/ca.pem"},
		"s3://wal?sse=AES256": {Bucket: "wal", SSE: "AES256"},
		"s3://wal?sse=aws:kms&sse_kms_key_id=arn:aws:kms:x:1:k": {Bucket: "wal", SSE: "aws:kms", SSEKMSKeyID: "arn:aws:kms:x:1:k"},
		"s3://wal?endpoint=https%3A%2F%2Fs3.example.com%2F":     {Bucket: "wal", Endpoint: "https://s3.example.com/"},
		"s3://wal?endpoint=minio:9000&storage_class=OWN":        {Bucket: "wal", Endpoint: "minio:9000", StorageClass: "OWN"},
	} {
		if got, err := ParseURL(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", text, got, err, want)
		}
	}
	for text, words := range map[string]string{
		"":                                       "s3://BUCKET/PREFIX",
		"wal/pg":                                 "s3://BUCKET/PREFIX",
		"file:///wal":                            "s3://BUCKET/PREFIX",
		"s3://":                                  "name of a bucket",
		"s3:///pg":                               "name of a bucket",
		"s3://wa":                                "name of a bucket",
		"s3://wal l/pg":                          "name of a bucket",
		"s3://" + strings.Repeat("b", 64):        "name of a bucket",
		"s3://localhost:9000/wal":                "endpoint",
		"s3://wal/a//b":                          "single slashes",
		"s3://wal/../b":                          "single slashes",
		"s3://wal/a%zz":                          "%25",
		"s3://wal/a#b":                           "%23",
		"s3://wal/a?region":                      "region has no value",
		"s3://wal/a?region=":                     "region has no value",
		"s3://wal/a?region=a&region=b":           "2 times",
		"s3://wal/a?region=eu central":           "region",
		"s3://wal/a?regoin=eu-central-1":         "did you mean region?",
		"s3://wal/a?path-style=true":             "did you mean path_style?",
		"s3://wal/a?pathstyle=true":              "did you mean path_style?",
		"s3://wal/a?force_path_style=true":       "want one of ca_file, credentials_file, endpoint",
		"s3://wal/a?path_style=yes":              "true or false",
		"s3://wal/a?sse=aes256":                  "AES256",
		"s3://wal/a?sse=AES256&sse_kms_key_id=x": "aws:kms",
		"s3://wal/a?storage_class=standard":      "STANDARD",
		"s3://wal/a?endpoint=ftp://x":            "https or http",
		"s3://wal/a?endpoint=http://":            "https://s3.example.com",
		"s3://wal/a?endpoint=http://x/?a=b":      "https://s3.example.com",
		"s3://wal/a?x=%zz":                       "key=value",
		"s3://wal/a?region=a;b":                  "key=value",
	} {
		_, err := ParseURL(text)
		if err == nil {
			t.Errorf("%s was taken", text)
			continue
		}
		if !strings.HasPrefix(err.Error(), "invalid store URL: ") || !strings.Contains(err.Error(), words) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line with %q", text, err, words)
		}
	}
}

// TestParseURLWithSecrets: what may be a secret is refused, and never repeated.
func TestParseURLWithSecrets(t *testing.T) {
	for _, text := range []string{
		"s3://AKIAHUNTER2:Hunter2Hunter2@wal/pg",
		"s3://AKIAHUNTER2:Hunter2/Hunter2@wal/pg",
		"s3://AKIAHUNTER2@wal/pg",
		"s3://wal/pg?secret_key=Hunter2",
		"s3://wal/pg?aws_secret_access_key=Hunter2&region=a",
		"s3://wal/pg?access_key=AKIAHUNTER2",
		"s3://wal/pg?AccessKeyId=AKIAHUNTER2",
		"s3://wal/pg?session-token=Hunter2",
		"s3://wal/pg?password=Hunter2",
		"s3://wal/pg?AKIAHUNTER2=Hunter2",
		"s3://wal/pg?Hunter2+Hunter2/Hunter2",
		"s3://wal/pg?Hunter2%zz",
		"s3://wal/pg?path_style=Hunter2",
		"s3://wal/pg?endpoint=https://user:Hunter2@s3.example.com",
		"s3://wal/pg?endpoint=https://user:Hunter2@s3.example.com:port",
		"s3://wal/pg?endpoint=https://s3.example.com/?secret=Hunter2",
	} {
		_, err := ParseURL(text)
		if err == nil {
			t.Errorf("%s was taken", text)
			continue
		}
		if strings.Contains(strings.ToLower(err.Error()), "hunter2") {
			t.Errorf("the error repeats what may be a secret: %v", err)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	f.Add("s3://wal/pg?region=eu-central-1&endpoint=http://127.0.0.1:7070")
	f.Add("s3://wal/%41?sse=aws:kms")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseURL(text)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("%q: the error is not one line: %q", text, err)
			}
			return
		}
		// What was taken is good for Open, and its name is one that ParseURL takes.
		done, err := c.checked()
		if err != nil {
			t.Errorf("%q was taken, and is wrong: %v", text, err)
		}
		if done.Bucket != c.Bucket || strings.HasPrefix(done.Prefix, "/") || strings.HasSuffix(done.Prefix, "/") {
			t.Errorf("%q became %+v", text, done)
		}
	})
}

func TestEndpoints(t *testing.T) {
	cleanEnv(t)
	for _, test := range []struct {
		config    Config
		env       string // AWS_ENDPOINT_URL_S3
		name      string
		pathStyle bool
	}{
		{Config{}, "", "s3://wal", false},
		{Config{PathStyle: true}, "", "s3://wal", true},
		{Config{Endpoint: "minio:9000"}, "", "s3://wal?endpoint=https://minio:9000", true},
		{Config{Endpoint: "http://127.0.0.1:7070/"}, "", "s3://wal?endpoint=http://127.0.0.1:7070", true},
		{Config{Endpoint: "http://[::1]:7070"}, "", "s3://wal?endpoint=http://[::1]:7070", true},
		{Config{Endpoint: "https://s3.example.com", Prefix: "pg"}, "", "s3://wal/pg?endpoint=https://s3.example.com", false},
		{Config{}, "http://localhost:7070", "s3://wal?endpoint=http://localhost:7070", true},
		{Config{Endpoint: "https://s3.example.com"}, "http://localhost:7070", "s3://wal?endpoint=https://s3.example.com", false},
	} {
		t.Setenv("AWS_ENDPOINT_URL_S3", test.env)
		test.config.Bucket = "wal"
		s := mustOpen(t, test.config)
		if s.String() != test.name || s.api.Options().UsePathStyle != test.pathStyle {
			t.Errorf("%+v with AWS_ENDPOINT_URL_S3=%s: %s, path style %v, want %s, %v", test.config, test.env, s, s.api.Options().UsePathStyle, test.name, test.pathStyle)
		}
	}
	t.Setenv("AWS_ENDPOINT_URL_S3", "http://user:hunter2@localhost:7070")
	_, err := Open(t.Context(), Config{Bucket: "wal"})
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("an endpoint with a password: %v", err)
	}
	if _, err := Open(t.Context(), Config{Bucket: "no"}); err == nil {
		t.Error("a bad bucket was opened")
	}
}
