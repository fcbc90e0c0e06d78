package objstore_test

import (
	"bytes"
	"hash/crc32"
	"io"
	"strings"
	"testing"

	"github.com/walferry/walferry/archive/objstore"
)

func TestBytes(t *testing.T) {
	for _, content := range []string{"", "123456789", strings.Repeat("x", 100_000)} {
		b := objstore.Bytes([]byte(content))
		for range 2 { // as often as an attempt needs them
			got, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
			if err != nil || !bytes.Equal(got, []byte(content)) {
				t.Errorf("a body of %d bytes reads as %d, %v", len(content), len(got), err)
			}
		}
		if want := crc32.Checksum([]byte(content), crc32.MakeTable(crc32.Castagnoli)); b.CRC32C() != want {
			t.Errorf("checksum is %08X, want %08X", b.CRC32C(), want)
		}
	}
	// The check value of CRC-32/ISCSI.
	if got := objstore.Bytes([]byte("123456789")).CRC32C(); got != 0xE3069283 {
		t.Errorf("checksum of 123456789 is %08X, want E3069283", got)
	}
}

func TestCheckKey(t *testing.T) {
	for _, key := range []string{"a", "wal_005/00000002.history.lz4", "a b/ü", "...", "a/..b", strings.Repeat("k", 255), strings.Repeat("k/", 383) + "k"} {
		if err := objstore.CheckKey(key); err != nil {
			t.Errorf("%q: %v", key, err)
		}
	}
	for _, key := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "a/.", "../a", "a\x7f", "a\tb", "\xc3", strings.Repeat("k", 256), strings.Repeat("k/", 384) + "k"} {
		if err := objstore.CheckKey(key); err == nil {
			t.Errorf("%q is taken for a key", key)
		}
	}
}
