// Package bench measures walferry beside pg_receivewal and pg_basebackup, on real servers, in
// one run: what counts is the ratio, since the machine is another one each
// time.
//
// Everything is in its tests' files:
//
//	go test -run '^$' -bench Receive ./integration/bench
//	go test -run '^$' -bench Steady -timeout 60m ./integration/bench
//	go test -run '^$' -bench Commit ./integration/bench
//	go test -run '^$' -bench Backup ./integration/bench
//
// BenchmarkReceive makes about 1 GiB of pgbench's WAL on a private server,
// with one physical slot for every contender and round that was made before
// it, so that all receive the same bytes: pg_receivewal without compression
// and with lz4, walferry into a directory and into a real S3 server. The clock
// of walferry runs until everything is in the archive. The goals that are
// printed beside the figures are the project's own.
//
// BenchmarkSteady lets a writer commit small transactions at 1, 10 and 50 MB/s
// and looks at the lag that the server sees, at CPU and memory, and counts the
// requests to S3 by a proxy.
//
// BenchmarkCommit lets 1, 8 and 32 clients commit tiny transactions that wait
// for one contender as the synchronous standby: pg_receivewal --synchronous,
// walferry on its spool's disk, and with --ack archive through the S3 server,
// beside what one PUT of a small object takes there, by the same code. The
// contenders take turns in several rounds; what is printed are the medians of
// the rounds. The spool's goal is held with a directory as the store: the S3
// server here writes to the same disk.
//
// BenchmarkBackup backs a cluster of about 1.5 GB up: by pg_basebackup into tar
// files that the server or the client compresses with lz4, and by walferry with
// the same compression into a directory and into the S3 server, each with the WAL
// that makes the backup consistent. What the server and the store took of the
// same processors stands beside it. Where the kernel lets us (root, and its
// control groups), the backups that the server compresses are taken once more
// with a share of the processors for each: for the server, for who takes the
// backup, and for the store, which does not share them with the others in real
// life. Then it is restored: by tar from pg_basebackup's tar file, and by
// walferry, beside what the disk takes to write as many bytes.
//
// All need PostgreSQL's programs ($WALFERRY_TEST_PG or the usual places) and
// versitygw ($WALFERRY_VERSITYGW, PATH or GOPATH/bin); what is missing is said
// loudly and left out. Variables:
//
//	WALFERRY_BENCH_ROUNDS   rounds of BenchmarkReceive, 3, of BenchmarkCommit, 5, and
//	                        of BenchmarkBackup, 3
//	WALFERRY_BENCH_MB       WAL of BenchmarkReceive, 1024, and size of BenchmarkBackup's
//	                        cluster, 1536
//	WALFERRY_BENCH_NOISE    how much of BenchmarkBackup's cluster hardly compresses,
//	                        per cent, 33; the rest is pgbench's
//	WALFERRY_BENCH_OVER     how BenchmarkBackup's contenders reach the server: unix,
//	                        or tcp, as from a host of their own
//	WALFERRY_BENCH_SECONDS  of each stream of BenchmarkSteady, 15, and of each
//	                        number of clients in BenchmarkCommit, 2
//	WALFERRY_BENCH_OTHER    another walferry program to run beside: an older
//	                        build, say
//
// Nothing here asserts a duration, and nothing is left running or lying about,
// also after an interrupt.
package bench
