// Package fakepg is a PostgreSQL server for tests: it speaks the start-up and
// the replication protocol over net.Pipe, where testing/synctest makes every
// timeout cost nothing, or over a loopback listener for tests of a whole
// program. Its WAL is made up but sound: pages and records that any WAL reader
// accepts.
//
// Left alone it behaves like a walsender. A test makes it misbehave by a
// script for the next START_REPLICATION or BASE_BACKUP (Server.Script,
// Server.ScriptBackup), by an answer to a command (Server.OnCommand), or by
// cutting connections (CloseAfter, Stop). Every status that a client sends is
// recorded. What a base backup holds comes from the test (Server.SetBackup);
// its framing is that of Options.Version.
package fakepg
