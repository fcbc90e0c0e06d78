// Package waldir is a directory as PostgreSQL's pg_receivewal keeps it, given
// to a spool as the file system that it knows. A spool over it leaves there
// nothing but what pg_receivewal would:
//
//	<SEGMENT>  .gz  .lz4                           whole; never removed, never changed
//	<SEGMENT>.partial  .gz.partial  .lz4.partial   being written, or where it was stopped
//	<TLI>.history                                  as the server sent it, never compressed
//
// (src/bin/pg_basebackup/pg_receivewal.c and walmethods.c, 15 to 18.)
//
// # What the spool sees
//
// A spool's other files are not there. Its lock is one on the directory
// itself. Its identity is what the first page of the newest segment says, and
// in an empty directory what the spool has written, in memory. So a directory
// of another cluster's is noticed, which the original does not do.
//
// Segments have their plain names, and are read as plain bytes, whatever their
// form. Shown are: the newest one, found as the original does (see Scan); those
// beside it on older timelines and right before it, by which the record is
// checked with which a partial begins; and the partials with which older
// timelines end. With Options.All every complete segment is shown besides. A
// segment that the spool removes is no longer shown; its file stays. Only a
// partial is removed.
//
// Of several partials in a row on one timeline the first is the one to go on
// from, and those behind it are not shown: a crash came while it waited for its
// seal. So that it is there then, a partial's name is durable before a byte is
// written, and stays while the next segment has a partial.
//
// A directory of 100,000 files costs its names. Looked into are the newest and
// what is shown.
//
// # Compressed files
//
// A segment is one gzip member or one lz4 frame, written in order as its bytes
// become final (disk.InOrder). At each sync point the compressor is flushed, so
// that all in front of it can be decoded, and the file fsynced; with the last
// byte it is ended. While the file is open its plain bytes are in memory, or,
// of segments above 64 MB, in a file of the directory that has no name once it
// is open.
//
// A stream cannot be gone on with after its compressor is gone. So a partial
// that is taken up again is written anew, from what can be decoded: into a
// temporary file, which gets the partial's name when it is durable. The same
// is done when bytes of it turn out to be others, behind what the spool vouches
// for. Nothing is ever written into an old stream: the original does that after
// it was killed, and leaves .gz files with garbage behind their end. It trusts
// the length in the last four bytes; here a file is decoded before it counts,
// and such a one counts when its first member is a whole segment.
//
// # What a crash leaves
//
// Beside what package spool says of its own operations (which hold for plain
// files as they are):
//
//	operation   crash after                  what is left                     what the next run makes of it
//	create      create SEG.gz.partial        nothing, or an empty file        an empty partial is removed
//	SyncTo      write, fsync                 SEG.gz.partial, torn behind the  what decodes is taken over: all in front of
//	                                         last sync                        the last sync, and perhaps more
//	(next       full, not sealed yet         SEG.gz.partial, empty or torn;   the first is gone on from, as if the
//	segment)                                 that of the next segment         other were not there
//	seal        end of the stream, fsync     SEG.gz.partial, whole            taken over, compared, sealed
//	            rename to SEG.gz             either name, whole               the same, or complete
//	take a      write SEG.gz.partial.tmp     the old partial, and the         the temporary file is removed
//	partial                                  temporary file or not
//	over        fsync, rename                old partial, temporary file, or  taken over again; the same bytes
//	                                         SEG.gz.partial, or two of these
//	            sync of the directory        old partial and SEG.gz.partial   of two partials the one that has less is
//	                                                                          removed, if its bytes are the other's first
//	            removal of the old one,      SEG.gz.partial
//	            sync of the directory
//	image       create of a segment above    walferry.image.tmp, empty, where removed
//	            64 MB, before it is unlinked a file must have a name
//
// The removal of the old partial is made durable before more is written: were
// it to come back beside one that has gone on, the longer would not be the
// right one for certain.
//
// The original's own remains are treated alike: a partial that it left when
// its method was changed is removed when the segment's complete file, or a
// longer partial, has all its bytes. One with other bytes stays, with a
// warning.
package waldir
