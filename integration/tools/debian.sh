#!/bin/sh
# debian.sh postgresql | compiler
#   Sees to it that this machine has what the tests need, by Debian's own
#   packages: PostgreSQL 15 with its programs, or a C compiler (go test -race
#   needs one). What is there already is left alone; without root it says
#   what to install. Words go to stderr; for postgresql, stdout is the
#   directory of the programs.
set -eu

# install PACKAGE...
install() {
	if ! command -v apt-get >/dev/null; then
		echo "debian.sh: no apt-get here: install what Debian calls $*, then run this again" >&2
		exit 69
	fi
	if [ "$(id -u)" != 0 ]; then
		echo "debian.sh: not root: run \"sudo $0 $what\" once, then this again" >&2
		exit 77
	fi
	echo "debian.sh: installing Debian's $*" >&2
	export DEBIAN_FRONTEND=noninteractive
	log=$(mktemp)
	if ! { apt-get -qq update && apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends "$@"; } >"$log" 2>&1; then
		cat "$log" >&2
		echo "debian.sh: installing $* failed, see above" >&2
		exit 69
	fi
	rm -f "$log"
}

what=${1-}
case $what in
postgresql)
	bin=/usr/lib/postgresql/15/bin
	if ! [ -x $bin/postgres ] || ! [ -x $bin/initdb ] || ! [ -x $bin/pgbench ]; then
		# The package starts a cluster on port 5432 unless it is told not
		# to. It is told so for as long as this takes: a PostgreSQL that
		# somebody installs later behaves as Debian's always do.
		own=/etc/postgresql-common/createcluster.d/walferry-tests.conf
		if [ "$(id -u)" = 0 ]; then
			trap 'rm -f "$own"' EXIT
			trap 'exit 1' HUP INT TERM
			mkdir -p "${own%/*}"
			echo 'create_main_cluster = false' >"$own"
		fi
		install postgresql-15 postgresql-client-15
	fi
	echo $bin
	;;
compiler)
	command -v "${CC:-gcc}" >/dev/null && [ -e /usr/include/stdlib.h ] || install gcc libc6-dev
	;;
*)
	echo "usage: debian.sh postgresql | compiler" >&2
	exit 64
	;;
esac
