package pgreceivewal

import (
	"fmt"
	"strings"
)

// Version returns the line of --version.
func Version(version string) string {
	return fmt.Sprintf("pg_receivewal (walferry) %s\n", version)
}

// Help returns the text of --help: the original's options in its order and
// groups, and ours in one of their own.
func Help(program string) string {
	return strings.ReplaceAll(helpText, "PROGRAM", program)
}

const helpText = `PROGRAM streams PostgreSQL's write-ahead log into a directory, and into an archive.
(This is walferry in pg_receivewal's place: it takes the same command line.)

Usage:
  PROGRAM [OPTION]...

Options:
  -D, --directory=DIR    write the WAL files to this directory, which must exist
  -E, --endpos=LSN       end successfully once this LSN has been received
      --if-not-exists    with --create-slot: a slot that exists already is no error
  -n, --no-loop          end when the connection is lost, do not connect again
      --no-sync          never wait until what was written is safe on disk
  -s, --status-interval=SECS
                         tell the server our position every SECS seconds (default: 10; 0: never)
  -S, --slot=SLOTNAME    receive from this replication slot
      --synchronous      make WAL safe on disk, and report it, as soon as it has come
  -v, --verbose          say more
  -V, --version          print the version and exit (first argument only)
  -Z, --compress=METHOD[:DETAIL]
                         compress files with gzip or lz4 (none: do not)
  -?, --help             print this text and exit (first argument only)

Connection options:
  -d, --dbname=CONNSTR   connection string or URI
  -h, --host=HOSTNAME    host of the server, or directory of its socket
  -p, --port=PORT        port of the server
  -U, --username=NAME    user to connect as
  -w, --no-password      never ask for a password
  -W, --password         ask for a password before connecting

Optional actions:
      --create-slot      create the replication slot that --slot names, and exit
      --drop-slot        drop the replication slot that --slot names, and exit

Archive:
      --store=URL        keep the WAL in this archive, too: s3://bucket/prefix or file:///directory
                         (not in PostgreSQL's pg_receivewal; never abbreviated)
`
