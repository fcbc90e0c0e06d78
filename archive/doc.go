// Package archive is what is kept for good: WAL segments, timeline history, base
// backups and the identity of one cluster, in an object store, in WAL-G's layout
// with walferry's own objects beside it.
//
//	wal_005/<SEGMENT><ext>           a whole segment
//	wal_005/<SEGMENT>.partial<ext>   the last segment of a timeline that ended at W: [0, W), then zeros
//	wal_005/<TLI>.history<ext>       timeline history
//	wal_tail_005/<SEGMENT>/…<ext>    tail objects: parts of a segment that is not whole yet
//	basebackups_005/<NAME>_backup_stop_sentinel.json  a base backup exists when this does
//	basebackups_005/<NAME>/…         its objects:
//	    tar_partitions/…             parts, each a tar file, compressed or not
//	    backup_manifest              the server's own bytes
//	    walferry.json                what WAL-G's files have no place for: BackupFacts
//	    metadata.json                the sentinel's content once more, for wal-g's listings
//	    attempt.json                 the name is taken
//	walferry_005/identity.json       system identifier, segment size and WAL codec
//	walferry_005/gaps/<GAP>.json     WAL that is known to be lost: RecordedGap
//
// # Objects do not change
//
// Everything here is stored put-if-absent. Where an object of the name exists,
// its decoded content decides: equal content is success (another receiver's,
// or our own whose answer was lost), other content is ErrConflict and stays as
// it is. So two receivers on one archive are safe, and so is every retry.
//
//	operation        crash or lost answer          state left              recovery
//	claim            before the identity is put    nothing                 claimed again
//	claim            after it                      the identity            it is compared, and is equal
//	put a segment,   before or in the middle       nothing                 put again
//	history, partial after it                      the object              put again: exists with equal content
//	put a tail       before or in the middle       the chain as it was     the bytes go with the next one
//	object           after it                      the chain, longer       put again: exists, and its name fixes the bytes
//	renew a tail     before, in the middle, after  the object, old or new  none needed: both are the same bytes
//	record a gap     before or in the middle       nothing                 recorded again, as it is then
//	                 after it                      the record              recorded again: exists, and its name says all
//	remove tails     in the middle                 fewer of them           those that supersede them came first: what
//	                                                                       is left is removed the next time, or by a
//	                                                                       lifecycle rule; a reader whose listing is
//	                                                                       older begins again
//	take a name for  before                        nothing                 taken again
//	a base backup    after it                      the name, taken         the next attempt takes the next of 8 names
//	store a backup's in the middle of a part       an upload in parts      SweepBackupUploads
//	objects          after one                     objects without a       no listing shows them; DeleteBackup
//	                                               sentinel
//	commit a backup  before the sentinel is put    as above                committed again, or given up
//	                 after it                      the backup              committed again: exists with equal content
//	delete a backup  before its sentinel is gone   the backup              deleted again
//	                 after it                      objects without a       deleted again; until nothing is left the
//	                                               sentinel                name is not given away
//	read tails       before the last               part of the segment at  the caller throws it away and begins again
//	                                               the reader's place
//
// # Base backups
//
// A backup is committed by its sentinel, which is put last, when all that it
// needs is there, and goes first when it is deleted: at no moment is there a
// sentinel without the rest. Its objects are stored under a name that no other
// attempt ever uses, as attempt.json sees to. Which backup is the newest is a
// matter of what they hold, never of when they were stored.
//
// # Tail objects
//
// A tail object's name says which bytes of the segment it holds and the
// checksum of all bytes from the segment's first to its last. So the name
// fixes the bytes, any receiver may write any of them, and a reader knows of
// each step that it is on the way of one history: AssembleTails.
//
// # Gaps
//
// A receiver that was told to goes on behind WAL that is gone for good, and says
// so here before it reports anything that lies behind. A gap explains why
// segments are missing; it is honoured as far as they really are. RunEnd goes on
// behind one, since reception does. A restore cannot: ReachFrom and Overview end
// in front of it, as at any other hole, until a base backup lies behind.
//
// # What is known and what is not
//
// ErrNotFound says that the store answered, for each form that an object can
// have, that there is none. Every other failure of the store is passed on and
// proves nothing. Names and sizes of objects are facts of the listing; what an
// object holds is known once it was decoded to its end.
package archive
