// Package restore gives WAL back to PostgreSQL. Its Fetcher is the core of
// `walferry fetch`, the restore_command: it brings one file, a WAL segment or
// a timeline history file, from the archive to the place that PostgreSQL named.
//
// PostgreSQL reads three things from a restore_command's exit status (its
// documentation, section "Recovering Using a Continuous Archive Backup"; run
// on 15 and 18):
//
//   - 0: the file is there;
//   - 1 to 125: there is no such file. An archive recovery takes this for the
//     end of the archive and promotes; a standby polls again;
//   - more, or a signal: the server stops, its data unharmed.
//
// So "absent" is never a default here. It is an answer that was proved
// (ErrAbsent); everything else is a failure, and Mode.ExitCode gives it the
// status that harms least: in an archive recovery the server stops and can go
// on after the mend, as a standby it asks again.
//
// A file appears under its final name only when it is whole, was checked while
// it was decoded, and is durable:
//
//	operation                  crash behind it leaves            recovery
//	scratch file made          pgsql_tmp_walferry.tails.…        as below
//	scratch file unlinked,     nothing: it has no name           none needed
//	tail objects in it
//	temporary file made        pgsql_tmp_walferry.… beside the   ignored by the server, base backups and
//	                           target                            pg_rewind; removed once it is an hour old
//	content written, fsynced   the same                          the same
//	renamed onto the target    target, whole; perhaps the old    the server asks again and removes
//	                           name after a power failure        what is there first
//	directory fsynced          target, whole                     none needed
//
// A segment that was never completed is put together from its tail objects, or
// is a partial, and zeros behind. In an archive recovery such a file is the end
// of WAL, so it is only delivered when nothing follows it; a standby asks for
// it again, and goes on where it was.
//
// Nothing here exits, prints or reads the environment.
package restore
