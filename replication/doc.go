// Package replication speaks PostgreSQL's streaming replication protocol as a
// client: it connects, asks what a server is, makes and drops physical slots,
// and streams write-ahead log (PostgreSQL documentation, chapter "Streaming
// Replication Protocol"; server side src/backend/replication/walsender.c).
//
// It decides nothing about positions: what is asked for and what is reported
// as written and flushed comes from the caller. It keeps no state beyond one
// connection, never retries, and never waits without a context or a limit of
// its own.
//
// Three types follow each other. A Config is what a person said about the
// server (flags, PG* variables, connection string, service file, password
// file), checked by ParseConfig. A Conn is an idle replication connection that
// takes one command at a time. A Stream is what a Conn becomes when WAL flows:
// one goroutine reads, the owner takes batches of messages and sends statuses.
//
// Errors name the host, port and user, and never a password. Passing tells
// those that may go away by themselves from those that a person must mend.
package replication
