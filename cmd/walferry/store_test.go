package main

import (
	"testing"

	"github.com/walferry/walferry/archive/objstore/s3"
	"github.com/walferry/walferry/cmd/internal/settings"
)

// TestS3Settings: what WAL-G's environment says becomes what the store is
// told, unless the URL says it.
func TestS3Settings(t *testing.T) {
	for _, c := range []struct {
		name    string
		store   string
		environ []string
		want    s3.Config
	}{
		{"URL alone", "s3://bucket/a/b?region=eu-west-1", nil, s3.Config{Bucket: "bucket", Prefix: "a/b", Region: "eu-west-1"}},
		{"WAL-G", "", []string{"WALE_S3_PREFIX=s3://bucket/a", "AWS_ENDPOINT=http://localhost:9000", "AWS_S3_FORCE_PATH_STYLE=true",
			"WALG_S3_SSE=aws:kms", "WALG_S3_SSE_KMS_ID=key", "WALG_S3_STORAGE_CLASS=STANDARD_IA", "WALG_S3_CA_CERT_FILE=/ca.pem"},
			s3.Config{Bucket: "bucket", Prefix: "a", Endpoint: "http://localhost:9000", PathStyle: true, SSE: "aws:kms", SSEKMSKeyID: "key", StorageClass: "STANDARD_IA", CAFile: "/ca.pem"}},
		{"the URL wins", "s3://bucket/a?endpoint=http://here:1&path_style=false&sse=AES256&storage_class=STANDARD&ca_file=/mine.pem",
			[]string{"AWS_ENDPOINT=http://there:2", "AWS_S3_FORCE_PATH_STYLE=true", "WALG_S3_SSE=aws:kms", "WALG_S3_STORAGE_CLASS=GLACIER", "WALG_S3_CA_CERT_FILE=/ca.pem"},
			s3.Config{Bucket: "bucket", Prefix: "a", Endpoint: "http://here:1", SSE: "AES256", StorageClass: "STANDARD", CAFile: "/mine.pem"}},
		{"WAL-G's endpoint before the AWS tools'", "s3://bucket/a", []string{"AWS_ENDPOINT=http://a", "AWS_ENDPOINT_URL=http://b"},
			s3.Config{Bucket: "bucket", Prefix: "a", Endpoint: "http://a"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &program{environ: append(c.environ, "HOME="+t.TempDir())}
			var flags []settings.Given
			if c.store != "" {
				flags = append(flags, settings.Given{Name: "store", Value: c.store})
			}
			set, err := p.load("", flags)
			if err != nil {
				t.Fatal(err)
			}
			got, err := p.findStore(set, false)
			if err != nil {
				t.Fatal(err)
			}
			if got.s3 == nil || *got.s3 != c.want {
				t.Errorf("got  %+v\nwant %+v", got.s3, c.want)
			}
		})
	}
}
