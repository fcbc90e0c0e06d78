// Package bench measures walferry beside pg_receivewal, on real servers, in
// one run: what counts is the ratio, since the machine is another one each
// time.
//
// Everything is in its tests' files:
//
//	go test -run '^$' -bench Receive ./integration/bench
//	go test -run '^$' -bench Steady -timeout 60m ./integration/bench
//	go test -run '^$' -bench Commit ./integration/bench
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
// the rounds.
//
// All need PostgreSQL's programs ($WALFERRY_TEST_PG or the usual places) and
// versitygw ($WALFERRY_VERSITYGW, PATH or GOPATH/bin); what is missing is said
// loudly and left out. Variables:
//
//	WALFERRY_BENCH_ROUNDS   rounds of BenchmarkReceive, 3, and of BenchmarkCommit, 5
//	WALFERRY_BENCH_MB       WAL of BenchmarkReceive, 1024
//	WALFERRY_BENCH_SECONDS  of each stream of BenchmarkSteady, 15, and of each
//	                        number of clients in BenchmarkCommit, 2
//	WALFERRY_BENCH_OTHER    another walferry program to run beside: an older
//	                        build, say
//
// Nothing here asserts a duration, and nothing is left running or lying about,
// also after an interrupt.
package bench
