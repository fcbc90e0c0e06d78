# On a bare Debian with Go, git and make: `make test` installs the rest.

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
ERRCHECK    := github.com/kisielk/errcheck@v1.30.0
ERRORLINT   := github.com/polyfloyd/go-errorlint@v1.8.0

.PHONY: build demo test check full bench

# The program, in one file that needs nothing but a kernel.
build:
	CGO_ENABLED=0 go build -trimpath -o walferry ./cmd/walferry

# The whole story on a throw-away cluster, in about a minute.
demo: build
	@command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb /usr/local/pgsql/bin/initdb 2>/dev/null | grep -q . || { \
		echo 'make demo: there is no PostgreSQL on this machine: installing Debian'"'"'s PostgreSQL 15 (no cluster is made or started)'; \
		integration/tools/debian.sh postgresql >/dev/null; }
	./walferry demo

# Every test (six at a time, and those of integration first: they mostly wait),
# with the race detector, on a real S3 server and a real PostgreSQL 15; the core
# ones also on the newest other one that `make full` has left here. WALFERRY_TEST_PG and WALFERRY_VERSITYGW may name others.
test:
	@integration/tools/debian.sh compiler
	@set -e; \
	pg=$${WALFERRY_TEST_PG:-$$(integration/tools/versions.sh found)}; \
	s3=$${WALFERRY_VERSITYGW:-$$(integration/tools/versitygw.sh)}; \
	echo "go test with PostgreSQL in $$pg and $$s3"; \
	CGO_ENABLED=1 WALFERRY_TEST_PG=$$pg WALFERRY_VERSITYGW=$$s3 go test -race -parallel 6 -timeout 30m ./integration ./...

# What needs no server: form, known mistakes, unchecked errors, import rules.
check:
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt -w: $$unformatted"; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...
	go run $(ERRCHECK) ./...
	go run $(ERRORLINT) ./...
	go test -count=1 .

# Every test on every PostgreSQL that can be had, with all rounds (about
# an hour), and the outcome as a document.
full:
	@integration/tools/debian.sh compiler
	@mkdir -p docs/proof
	@set -e -o pipefail; \
	pg=$$(integration/tools/versions.sh); \
	s3=$${WALFERRY_VERSITYGW:-$$(integration/tools/versitygw.sh)}; \
	export CGO_ENABLED=1 WALFERRY_FULL=1 WALFERRY_TEST_PG=$$pg WALFERRY_VERSITYGW=$$s3; \
	{ \
		echo 'command: make full'; \
		echo "commit:  $$(git rev-parse HEAD)$$(git diff --quiet HEAD -- . ':!docs/proof' || echo ', changed')"; \
		echo "began:   $$(date -u +'%Y-%m-%d %H:%M UTC')"; \
		echo "machine: $$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $$(nproc) cores"; \
		echo "kernel:  $$(uname -srm)"; \
		echo "go:      $$(go version)"; \
		for bin in $$(echo $$pg | tr : ' '); do echo "server:  $$($$bin/postgres --version)"; done; \
		echo; \
	} | tee docs/proof/full.txt; \
	{ \
		failed=; \
		go test -race -count=1 -timeout 45m $$(go list ./... | grep -v '/integration$$') 2>&1 || failed=1; \
		go test -race -count=1 -parallel 4 -timeout 120m -v ./integration 2>&1 | { grep -v '^=== ' || :; } || failed=1; \
		echo; \
		echo "ended:   $$(date -u +'%Y-%m-%d %H:%M UTC'), $${failed:+NOT }passed"; \
		[ -z "$$failed" ]; \
	} | tee -a docs/proof/full.txt
full: SHELL := /bin/bash

# The hot path's own benchmarks, then the same WAL received by walferry and by
# pg_receivewal, with the ratios (some minutes, on a machine that does nothing
# else).
bench:
	@set -e; \
	pg=$${WALFERRY_TEST_PG:-$$(integration/tools/versions.sh found)}; \
	s3=$${WALFERRY_VERSITYGW:-$$(integration/tools/versitygw.sh || :)}; \
	go test -run '^$$' -bench . -benchmem $$(go list ./... | grep -v '/integration/bench$$'); \
	WALFERRY_TEST_PG=$$pg WALFERRY_VERSITYGW=$$s3 go test -run '^$$' -bench . -timeout 60m ./integration/bench
