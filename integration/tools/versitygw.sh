#!/bin/sh
# versitygw.sh
#   Sees to it that this machine has the S3 server that the tests use, in the
#   one version that they are written for. Words go to stderr; stdout is the
#   path of the program. Building it takes a few minutes, once.
set -eu

version=v1.8.0
cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/walferry-tests/versitygw-$version

# is_it FILE: whether FILE is that version.
is_it() {
	[ -x "$1" ] && go version -m "$1" 2>/dev/null | grep -q "github.com/versity/versitygw[[:space:]]*$version"
}

for program in "$cache/versitygw" "$(go env GOPATH)/bin/versitygw" "$(command -v versitygw || true)"; do
	if [ -n "$program" ] && is_it "$program"; then
		echo "$program"
		exit 0
	fi
done

echo "versitygw.sh: building versitygw $version, a few minutes, into $cache" >&2
mkdir -p "$cache"
# With a version after the @, go install does not touch our go.mod.
GOFLAGS= GOOS= GOARCH= CGO_ENABLED=0 GOBIN=$cache go install "github.com/versity/versitygw/cmd/versitygw@$version" >&2
if ! is_it "$cache/versitygw"; then
	echo "versitygw.sh: go install left no versitygw $version in $cache" >&2
	exit 70
fi
echo "$cache/versitygw"
