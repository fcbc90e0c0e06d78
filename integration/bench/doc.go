// Package bench measures walferry beside pg_receivewal, on real servers, in
// one run: what counts is the ratio, since the machine is another one each
// time.
//
// Everything is in its tests' files:
//
//	go test -run '^$' -bench Receive ./integration/bench
//	go test -run '^$' -bench Steady -timeout 60m ./integration/bench
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
// Both need PostgreSQL's programs ($WALFERRY_TEST_PG or the usual places) and
// versitygw ($WALFERRY_VERSITYGW, PATH or GOPATH/bin); what is missing is said
// loudly and left out. Variables:
//
//	WALFERRY_BENCH_ROUNDS   rounds of BenchmarkReceive, 3
//	WALFERRY_BENCH_MB       WAL of BenchmarkReceive, 1024
//	WALFERRY_BENCH_SECONDS  of each stream of BenchmarkSteady, 15
//	WALFERRY_BENCH_OTHER    another walferry program to run beside: an older
//	                        build, say
//
// Nothing here asserts a duration, and nothing is left running or lying about,
// also after an interrupt.
package bench
