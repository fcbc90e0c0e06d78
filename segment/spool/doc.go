// Package spool keeps WAL on the receiver's own disk until it is in the
// archive: the segment that is being filled, the sealed ones that wait to be
// uploaded, the timeline history files, and the identity of the cluster they
// are of. It is what makes the flush LSN true that is reported to a server.
//
// # Files
//
// All lie in one directory, with the names that pg_receivewal gives:
//
//	<SEGMENT>.partial        being filled, or the last one of a timeline; allocated to a segment's size
//	<SEGMENT>                sealed: whole, never changed again
//	<TLI>.history            timeline history, as the server sent it
//	walferry.identity.json   system identifier and segment size; written once
//	walferry.lock            locked while a process has the spool open
//	*.tmp                    a history or identity file that is being written
//
// Files with other names are left alone.
//
// # What is durable, and what a crash leaves
//
// "Durable" is: there after the loss of power. Four calls promise it by
// returning nil: Bind, PutHistory, Segment.Sync (bytes up to the LSN that it
// returns) and Segment.Seal; Segment.Finish too. Everything else promises
// nothing. Steps are in the order in which they are done.
//
//	operation   crash after              what is left                     what the next Open and Begin make of it
//	Open        mkdir                    directory or not                 made again, each parent synced
//	            removal of *.tmp         they come back or not            removed again
//	Bind,       create X.tmp, write      X.tmp, any content               X.tmp removed; nothing was promised
//	PutHistory  sync X.tmp               X.tmp or nothing                 the same
//	            rename to X              X.tmp, X (whole) or nothing      X is whole when it is there: taken, its name synced
//	            sync of the directory    X                                X. Promised.
//	Begin       create SEG.partial       nothing, or an empty file        an empty file, or one of zeros, is removed: no
//	                                                                      byte of it was promised
//	            allocate                 as above, any length             a short file is completed by Begin
//	WriteAt     write                    any mix of old and new blocks    its records are checked: what they vouch for is
//	                                                                      compared with the server's, the rest written again
//	Sync        sync of the file         bytes, and the name or not       as WriteAt
//	            sync of the directory    SEG.partial with the bytes       the bytes are there. Promised. (Behind the last
//	            (the first time only)                                     whole record they are in the file, but not vouched)
//	Seal        sync of the file         SEG.partial, whole               vouched to its end; the receiver seals it again
//	            rename to SEG            SEG.partial or SEG, whole        both are whole
//	            sync of the directory    SEG                              offered to the uploader. Promised.
//	Finish      sync (as Sync)           SEG.partial up to the place      Finish again, with what the history file says
//	VouchBegin- read only                what it was                      nothing is promised by it: asked again
//	ning
//	Drop        remove                   SEG, or nothing                  SEG is offered again; the archive has the same content
//	            (not sealed)             SEG.partial, torn, or nothing    found again; the receiver, which asks the archive
//	                                                                      first, drops what lies in front of its end
//
// A failed sync of a file is final for the Segment: the kernel may have
// dropped the bytes and forgotten that it did, so that a second sync would
// prove nothing. The way out is Abandon and Begin: Begin writes the bytes that
// it finds once more, so that the next sync has them to do. A failed sync of
// the directory is final for the Spool: every promise fails until it has been
// closed and opened again.
//
// What a partial's own records cannot vouch for is the record with which it
// begins, when that began in the segment before. Open and Begin check it with
// that segment when it is sealed in the spool on the same timeline; when it is
// in the archive, whoever reads it there calls VouchBeginning.
//
// A segment is removed by Drop alone, when the caller knows that the archive
// has it.
package spool
