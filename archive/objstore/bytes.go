package objstore

import (
	"bytes"
	"hash/crc32"
)

// castagnoli is the table of CRC32C. It is never written to.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Bytes makes a Body of b, which must not change while a call uses it.
func Bytes(b []byte) Body {
	return &byteBody{Reader: bytes.NewReader(b), crc: crc32.Checksum(b, castagnoli)}
}

type byteBody struct {
	*bytes.Reader // ReadAt and Size: neither moves the reader, so both may run concurrently
	crc           uint32
}

func (b *byteBody) CRC32C() uint32 { return b.crc }
