// Package unpack brings a base backup from the archive into a data directory:
// one of walferry's, or a full one of WAL-G's.
//
// The objects are downloaded ahead in ranges, decoded side by side, and written
// beside that. Everything is checked before the directory becomes one that a
// server starts in: each part against its checksum in walferry.json, each file
// against the server's backup manifest, and that no file is missing, there
// twice, or there though nothing lists it. WAL-G keeps no checksums of files:
// there the names in files_metadata.json must all come, and the parts' own
// checksums hold.
//
// What an entry of a tar is called never leads out of the directory: names with
// "..", links and devices are errors, and every path is resolved below the
// directory's own descriptor. Tablespaces are directories of their own; the
// links to them are ours, and so is tablespace_map when they moved.
//
// # What a crash leaves
//
// No server starts in a directory without global/pg_control. It is written
// under another name, and gets its own when all else is durable:
//
//	operation                     crash behind it leaves              recovery
//	backup read, places looked    nothing                             none needed
//	at
//	directories and links made    directories without pg_control      the next restore refuses them as not
//	parts unpacked                some files, without pg_control      empty: remove them, or let it replace
//	tablespace_map rewritten,     all files, without pg_control       them
//	all made durable
//	Finish called                 the same, with recovery settings    the same
//	pg_control renamed            all files; perhaps, after a power   none needed, or the same
//	                              failure, without pg_control
//	its directory made durable    all files                           none needed
//
// After an error, which is no crash, all that was made is removed, pg_control
// first.
//
// Nothing here exits, prints or reads the environment.
package unpack
