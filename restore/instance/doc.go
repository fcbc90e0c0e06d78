// Package instance runs a private PostgreSQL server on this host: for a
// demonstration, a restore drill, or a test. Nothing of it is visible outside
// its own directory, and nothing of it is left when Remove returns.
//
//	<dir>/data             the data directory
//	<dir>/postgresql.conf  the settings: outside the data directory, so that a
//	                       copy or a restored directory is used as it is, and
//	                       what its own postgresql.conf says (an
//	                       archive_command!) is not run
//	<dir>/pg_hba.conf      who may connect: everybody who can reach the socket
//	<dir>/sock             the Unix socket, mode 0700
//	<dir>/server.log       what the server printed
//
// PostgreSQL refuses to run as root. When this process is root, the server and
// its programs run as an unprivileged Account and the directory belongs to it.
//
// The server is a direct child of this process (no pg_ctl: installations that
// are made for embedding may lack it, and a child's end is known for certain).
// It does not share our process group, so that an interrupt typed at the
// terminal reaches only us, and we decide how the server ends.
//
// A Server has one owner and is not safe for concurrent use, except Done.
package instance
