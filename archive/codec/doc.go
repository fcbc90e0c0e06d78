// Package codec turns bytes into the form in which the archive stores them,
// and back: compression with its checksums, and the buffers in which an
// encoded object waits for the store.
//
// It writes lz4 and zstd, one frame per object with content size and content
// checksum, or the plain bytes; the same bytes and the same method give the
// same object, whatever the sizes of the writes. Streams, whose size nobody
// knows beforehand, lack it, and those that are encoded in parallel have no
// checksum either. It reads whatever WAL-G ever wrote: lz4, zstd, plain, gzip,
// brotli, and classic lzma.
//
// What a reader returns before io.EOF is a prefix of the content and nothing
// more: only io.EOF says that the object was whole and that its checksums
// held. lz4 legacy frames, brotli, plain bytes, and frames written without
// checksums can be cut or altered in ways that no decoder sees; who knows the
// size or the structure of the content checks these too.
//
// Only this package knows how an object's bytes come about. Nothing outside
// may take an object for a compressed frame, or its size for the frame's:
// encryption would sit here, and change both.
package codec
