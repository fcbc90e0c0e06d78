// Package integration runs the walferry binary against real PostgreSQL servers
// and a real S3 server, with faults: processes killed, storage taken away,
// clusters exchanged. It holds nothing but tests.
//
// The binary is built once a run, with the race detector. Everything happens
// in one directory below the temporary directory, as an unprivileged user when
// the tests run as root, and with an environment that holds nothing of the
// caller's; nothing runs on or is left when the tests are over.
//
// PostgreSQL is found in the directories of $WALFERRY_TEST_PG (colon
// separated, each a directory of server programs) and in the usual places. The
// scenarios run on PostgreSQL 15, the core ones also on the newest one found;
// with $WALFERRY_FULL they run on every version, and what is random is done
// many times ($WALFERRY_SEED repeats a run). The run says which versions it
// used. The dropin tests run PostgreSQL's pg_receivewal and ours side by side.
// Without a server, or with -short, every test is skipped, and says so.
package integration
