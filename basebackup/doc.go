// Package basebackup takes base backups: it has a PostgreSQL server send one
// over the replication protocol, checks it, and stores it in the archive in
// WAL-G's layout.
//
// # The way of a byte
//
//	server ──▶ stream ──▶ parts ──▶ store
//	                        └─────▶ decode, tar file, CRC32C of every file ──▶ list of the files ──▶ manifest
//
// What the server compressed is stored as it was sent. A second reader follows
// the parts while they fill, decodes them, and keeps of each file its name,
// size and checksum; behind the last archive this list is held against the
// server's manifest. Where the bytes that are stored are not those that came
// (the client compresses, or names in a tablespace's tar file get
// pg_tblspc/<oid>/ in front), a goroutine between both reads, checks, and
// writes them anew; with lz4 over a Unix socket the receiver does it itself.
//
// Memory does not grow with the backup. Parts are what is held: 8 MiB at first,
// more for an object that would otherwise need more parts than a store takes,
// up to four at a time and 64 MiB in all; larger ones go through a file without
// a name. The list of the files and the manifest go there too when they are
// long. While the store is slow or away, reception waits, and the server with
// it.
//
// # Names, order, and what makes a backup
//
//	basebackups_005/<name>/attempt.json              takes the name
//	basebackups_005/<name>/tar_partitions/part_000…  the entry of the data directory itself
//	                                      part_001…  an object for each archive, tablespaces first
//	                                      part_wal…  WAL from start to stop, where it is included
//	basebackups_005/<name>/backup_manifest           as the server sent it
//	basebackups_005/<name>/walferry.json, metadata.json
//	basebackups_005/<name>_backup_stop_sentinel.json the backup exists
//
// They are stored in this order (part_wal anywhere among the other parts), the
// sentinel after everything else is durable: every part, the manifest, and the
// WAL that a restore needs, from the segment that holds the start to the stop
// on the stop's timeline. The name is that of the start LSN, and never one that
// has objects. So:
//
//	crash point                            state left                               recovery
//	before the name is taken               the server gives the backup up when      none needed
//	                                       its connection ends; a temporary slot
//	                                       ends with its own
//	while parts are stored                 attempt.json, whole objects, uploads     the next attempt takes another name; an upload of more
//	                                       that nobody sees, files without a name   than 7 days is swept by a later backup (or a lifecycle
//	                                       that the kernel frees                    rule); objects go with the name: DeleteBackup
//	behind the parts, while it waits for   the same, without uploads                the same
//	WAL, behind walferry.json
//	sentinel: before                       the same                                 the same
//	sentinel: after, answer lost           the backup                               the same Commit finds it equal; another process lists it
//
// A failure that is no crash leaves the same, but no uploads, as far as the
// store lets them be aborted.
//
// # What is trusted
//
// That a file is what the server read is proved by the manifest, whose own
// checksum is checked first; that a page is what PostgreSQL wrote, by the
// server, which says of every page whose checksum is wrong: such a backup is
// kept and marked as suspect. That the store holds what was checked is proved
// by the checksum that goes with every part and stands in walferry.json.
package basebackup
