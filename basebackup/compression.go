package basebackup

import (
	"fmt"
	"strings"

	"github.com/walferry/walferry/archive/codec"
)

// Compression says who compresses a backup, and how. The zero Compression is
// server-lz4.
type Compression struct {
	client bool
	method codec.Method // zero: lz4 at the server's default level
}

// ParseCompression reads server-lz4, server-zstd, client-lz4, client-zstd, each
// with a level as in client-zstd:5, or none. The error is one line that says
// what would be right.
func ParseCompression(text string) (Compression, error) {
	if text == codec.None {
		return Compression{client: true, method: codec.Method{Name: codec.None}}, nil
	}
	where, method, ok := strings.Cut(text, "-")
	name, _, _ := strings.Cut(method, ":")
	if !ok || where != "server" && where != "client" || name != codec.LZ4 && name != codec.Zstd {
		return Compression{}, fmt.Errorf("invalid compression %q: want server-lz4, server-zstd, client-lz4, client-zstd or none, with a level as in client-zstd:5", text)
	}
	m, err := codec.Parse(method)
	if err != nil {
		return Compression{}, fmt.Errorf("invalid compression %q: %w", text, err)
	}
	return Compression{client: where == "client", method: m}, nil
}

// String returns the compression as ParseCompression reads it.
func (c Compression) String() string {
	switch {
	case c.how().Name == codec.None:
		return codec.None
	case c.client:
		return "client-" + c.how().String()
	}
	return "server-" + c.how().String()
}

// how returns the method, which is also that of the parts that the client
// makes when the server compresses the others.
func (c Compression) how() codec.Method {
	if c.method.Name == "" {
		return codec.Method{Name: codec.LZ4}
	}
	return c.method
}

// server returns what the server is asked for: "" when it does not compress.
func (c Compression) server() (name string, level int) {
	if c.client {
		return "", 0
	}
	m := c.how()
	return m.Name, m.Level
}

// byClient is the same method where the server cannot compress.
func (c Compression) byClient() Compression { return Compression{client: true, method: c.how()} }
