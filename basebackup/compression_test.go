package basebackup

import (
	"strings"
	"testing"
)

func TestParseCompression(t *testing.T) {
	for _, text := range []string{"server-lz4", "server-lz4:5", "server-zstd", "server-zstd:19", "client-lz4", "client-lz4:12", "client-zstd:1", "none"} {
		c, err := ParseCompression(text)
		if err != nil || c.String() != text {
			t.Errorf("%s is read as %s, %v", text, c, err)
		}
		if again := c.byClient().String(); again != strings.Replace(text, "server", "client", 1) {
			t.Errorf("%s is compressed here as %s", text, again)
		}
		name, level := c.server()
		if asked := strings.HasPrefix(text, "server"); asked != (name != "") || !asked && level != 0 {
			t.Errorf("%s: the server is asked for %q, level %d", text, name, level)
		}
	}
	if name, level := (Compression{}).server(); (Compression{}).String() != "server-lz4" || name != "lz4" || level != 0 {
		t.Errorf("the default is %s", Compression{})
	}
	for _, text := range []string{"", "lz4", "server", "server-", "server-none", "client-none", "none:1", "server-gzip", "server-lz4:", "server-lz4:0", "server-lz4:13", "client-zstd:23", "Server-lz4", "server-lz4 ", "both-lz4"} {
		c, err := ParseCompression(text)
		if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "invalid compression") {
			t.Errorf("%q is read as %s, %v", text, c, err)
		}
	}
}
