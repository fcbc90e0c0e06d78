package s3

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/walferry/walferry/archive/objstore"
)

// TestAnswerBeforeTheBody: a store that has seen enough from the headers of a
// put resets the connection in the middle of the body, so that its 412 is
// never read. Whether the object exists is known all the same.
func TestAnswerBeforeTheBody(t *testing.T) {
	for _, exists := range []bool{true, false} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodPut:
				c, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				if err := c.(*net.TCPConn).SetLinger(0); err != nil {
					t.Error(err)
				}
				_ = c.Close() // a reset: that is the point
			case exists:
				w.Header().Set("Content-Range", "bytes 0-0/4194304")
				w.Header().Set("Content-Length", "1")
				w.WriteHeader(http.StatusPartialContent)
				_, _ = fmt.Fprint(w, "0")
			default:
				w.WriteHeader(http.StatusNotFound)
				_, _ = fmt.Fprint(w, xmlError(http.StatusNotFound, "NoSuchKey", "gone").body)
			}
		}))
		defer server.Close()
		as(t, somebody)
		s := mustOpen(t, Config{Bucket: "wal", Endpoint: server.URL})
		err := put(t, s, "wal_005/a", strings.Repeat("0123456789abcdef", 1<<18))
		// What a small put ends with is the store's own word: by one it is tried
		// whether the condition is honoured.
		mustBe(t, "a small body", put(t, s, "wal_005/a", "1"), nil, "no answer from")
		if exists {
			mustBe(t, "the object exists", err, objstore.ErrExists, "put-if-absent wal_005/a", "it is there")
		} else {
			mustBe(t, "the object does not exist", err, nil, "put-if-absent wal_005/a", "no answer from")
		}
	}
}
