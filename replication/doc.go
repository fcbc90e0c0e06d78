// Package replication speaks PostgreSQL's streaming replication protocol as a
// client: it connects, asks what a server is, makes and drops physical slots,
// streams write-ahead log, and takes base backups (PostgreSQL documentation,
// chapter "Streaming Replication Protocol"; server side
// src/backend/replication/walsender.c and src/backend/backup).
//
// It decides nothing about positions: what is asked for and what is reported
// as written and flushed comes from the caller. It keeps no state beyond one
// connection, never retries, and never waits without a context or a limit of
// its own.
//
// A Config is what a person said about the server (flags, PG* variables,
// connection string, service file, password file), checked by ParseConfig. A
// Conn is an idle replication connection that takes one command at a time. A
// command that makes data flow turns it into one of two others, and its owner
// into theirs:
//
//   - A Stream is what a Conn becomes when WAL flows: one goroutine reads, the
//     owner takes batches of messages and sends statuses. The server waits for
//     answers, so that they must go out whether or not anybody takes data.
//   - A BaseBackup is what a Conn becomes when a backup flows: nobody answers,
//     so that the owner itself reads, one message after the other. Both
//     framings, that of PostgreSQL 14 and that of 15 and later, look the same:
//     archives, the manifest, io.EOF. Names of archives are held against the
//     server's list of tablespaces. io.EOF comes only when the server has said
//     that the backup is complete; whatever else ends it is another error.
//
// Received bytes are borrowed: a batch's until its Release, a backup's until
// the next call.
//
// Errors name the host, port and user, and never a password. Passing tells
// those that may go away by themselves from those that a person must mend.
package replication
