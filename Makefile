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

# Every test, with the race detector, on a real PostgreSQL 15 and a real S3
# server. WALFERRY_TEST_PG and WALFERRY_VERSITYGW may name others.
test:
	@integration/tools/debian.sh compiler
	@set -e; \
	pg=$${WALFERRY_TEST_PG:-$$(integration/tools/debian.sh postgresql)}; \
	s3=$${WALFERRY_VERSITYGW:-$$(integration/tools/versitygw.sh)}; \
	echo "go test with PostgreSQL in $$pg and $$s3"; \
	CGO_ENABLED=1 WALFERRY_TEST_PG=$$pg WALFERRY_VERSITYGW=$$s3 go test -race -timeout 15m ./...

# What needs no server: form, known mistakes, unchecked errors, import rules.
check:
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt -w: $$unformatted"; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...
	go run $(ERRCHECK) ./...
	go run $(ERRORLINT) ./...
	go test -count=1 .

# The tests with more rounds, and their outcome as a document.
full:
	@mkdir -p docs/proof
	@{ date -u +'%Y-%m-%d %H:%M UTC'; git describe --always --dirty; go version; nproc; } >docs/proof/full.txt
	@set -o pipefail; WALFERRY_FULL=1 $(MAKE) --no-print-directory test 2>&1 | tee -a docs/proof/full.txt
full: SHELL := /bin/bash

bench:
	go test -run '^$$' -bench . -benchmem ./...
