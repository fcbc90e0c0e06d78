package s3

import (
	"net/url"
	"strconv"
	"strings"
)

// Settings returns where the store is and how it is used, with what was found
// in the environment and the shared files: the endpoint and the region.
// Credentials are no part of it. A region that nobody configured is empty:
// whoever opens the store finds the bucket's own out again.
func (s *Store) Settings() Config {
	c := s.cfg
	if s.follow {
		c.Region = ""
	}
	return c
}

// URL returns the store URL that says all of c: ParseURL of it gives c again
// (without timeouts and log).
func (c Config) URL() string {
	u := "s3://" + c.Bucket
	if c.Prefix != "" {
		parts := strings.Split(c.Prefix, "/")
		for i, p := range parts {
			// A store URL is cut at the first ? and may hold no #.
			parts[i] = url.PathEscape(p)
		}
		u += "/" + strings.Join(parts, "/")
	}
	q := url.Values{}
	for key, value := range map[string]string{
		"region": c.Region, "endpoint": c.Endpoint, "profile": c.Profile, "sse": c.SSE, "sse_kms_key_id": c.SSEKMSKeyID,
		"storage_class": c.StorageClass, "ca_file": c.CAFile, "credentials_file": c.CredentialsFile,
	} {
		if value != "" {
			q.Set(key, value)
		}
	}
	if c.PathStyle {
		q.Set("path_style", strconv.FormatBool(c.PathStyle))
	}
	if len(q) > 0 {
		u += "?" + q.Encode() // sorted by key
	}
	return u
}
