package integration

import (
	"bytes"
	"encoding/binary"
)

// dropInLine is a wrong command line, without a server. since is the major
// version of the original from which on it is refused in the words that we
// follow; 0: always.
type dropInLine struct {
	line  string
	since int
}

// lines makes entries of lines that mean the same in every version.
func lines(since int, all ...string) []dropInLine {
	out := make([]dropInLine, len(all))
	for n, line := range all {
		out[n] = dropInLine{line, since}
	}
	return out
}

// dropInLines are refused before anything is connected to.
var dropInLines = joined(
	// getopt's own complaints.
	lines(0, "-Q", "-nQ", "-nvQ", "-:", "'-?x'", "-n -V", "-n '-?'", "-nV", "-?n", "-Vn", "-ä", "-D", "-n -D", "-nvD", "-E", "-s", "-S", "-Z", "-d", "-h", "-p", "-U",
		"--bad", "--bad=1", "--directoryy", "--D", "--directory", "--dir", "--endpos", "--status-interval", "--slot", "--compress", "--dbname", "--host", "--port", "--username",
		"--=", "--=x", "--s", "--s=3", "--d", "--d=x", "--p", "--p=1", "--no", "--no-", "--no=1", "--h", "--ho", "--c", "--ver", "--e", "--u", "--v", "--i", "--sto", "--stor", "--st",
		"--no-loop=1", "--no-l=1", "--no-sync=", "--create-slot=x", "--dro=", "--if-not-exists=1", "--synchronous=on", "--verbose=2", "--password=x", "--pass=", "--no-password=",
		"word --bad", "-nv word -Q", "-n-"),
	// Help and version, too late.
	lines(0, "--hel", "--vers", "-n --help", "-n --version", "-n --hel", "word --help", "--no-loop --help --bad", "-E 0/1 --version -E x", "-- --help"),
	// The line as a whole.
	lines(0, "''", "--", "-n", "-v", "-vvv", "-nvw", "-W", "word", "'' -n", "-", "- -n", "-n word another", "-n -- word", "-- -n", "-n -- -D /nonexistent", "-D /nonexistent word",
		"--create-slot --drop-slot", "--create-slot --drop-slot word", "--create-slot --drop-slot -S x", "--drop --create -S x", "--create-slot", "--drop-slot", "--create-slot -D /nonexistent",
		"--drop-slot --synchronous --no-sync", "--synchronous --no-sync", "--synchronous --no-sync -D /nonexistent", "--synchronous --no-sync -S x --drop-slot", "--no-s --sy -D /nonexistent -Z bad",
		"--if-not-exists", "-S x", "-E 0/1", "-Z bad", "-Z gzip:99"),
	// The directory.
	lines(0, "-D /nonexistent", "-D/nonexistent", "--directory=/nonexistent", "--dir /nonexistent", "-D ''", "-D /etc/passwd", "-D /etc/passwd/x", "-nvD /nonexistent", "-nvD/nonexistent", "-D -n", "-D --",
		"-D / -D /nonexistent", "-D '/none xistent'", "-D '/ä'", "-D /nonexistent -p abc", "-D /nonexistent -d bad", "-D /nonexistent --create-slot", "-wW -D /nonexistent", "-D /nonexistent -S ''",
		"-D /nonexistent -- ", "-n -s 5 -S x -v -E 1/2 -Z lz4 -h h -p 1 -U u -w --synchronous -D /nonexistent"),
	// -s.
	lines(0, "-s abc", "-sabc", "--status-interval=abc", "--st=3x", "-s 5x", "-s 5.5", "-s 0x10", "-s '- 5'", "-s '5 5'", "-s -1", "-s -x", "-s 2147484", "-s 99999999999999999999", "-s -99999999999999999999",
		"-s 18446744073709551617", "-s -18446744073709551615", "-s 99999999999999999999x", "-s abc -E abc", "-s abc --bad", "-s '' -D /nonexistent", "-s ' ' -D /nonexistent", "-s ' 5 ' -D /nonexistent", "-s +5 -D /nonexistent", "-s 2147483 -D /nonexistent", "-s 0 -D /nonexistent"),
	// -E.
	lines(0, "-E abc", "-Eabc", "--endpos=abc", "--end abc", "-E ''", "-E 1", "-E 1/", "-E /1", "-E /", "-E '1 /2'", "-E 1//2", "-E 1/-", "-E --1/2", "-E +-1/2", "-E '- 1/2'", "-E 0xg/1", "-E g/1", "-E abc -s abc", "-E abc --bad", "--bad -E abc",
		"-E 0/1 -E abc -D /nonexistent", "-E 0/1junk -D /nonexistent", "-E 0x1/0X2 -D /nonexistent", "-E ' 1/ 2' -D /nonexistent", "-E -1/-2 -D /nonexistent", "-E +1/2 -D /nonexistent",
		"-E fffffffffff/1 -D /nonexistent", "-E 0/0 -D /nonexistent", "-E 1/2/3 -D /nonexistent"),
	lines(18, "-E 0x/1", "-E 1/0x"),
	// -Z, which is looked at before the directory.
	dashZ(0, "5x", "5 ", "0x5", " ", "-", "5:5", "0:5", ":5", ":", "10", "-2", "99999999999", "none:", "none:1", "none:level=1", "none:workers=1", "none:x", "NONE", "GZIP", "bzip2", "bzip2:5", " gzip", "gzip ", "client-gzip", "server-lz4",
		"gzip:", "gzip:0", "gzip:10", "gzip:-2", "gzip:abc", "gzip:5x", "gzip:5 ", "gzip:0x5", "gzip:level=0", "gzip:level=", "gzip:level", "gzip:level=x", "gzip:level=5 ", "gzip:level= ", "gzip:level=5,", "gzip:,level=5", "gzip:,", "gzip:level=5,,level=6",
		"gzip:LEVEL=5", "gzip:level =5", "gzip:workers=1", "gzip:workers=0", "gzip:workers=x", "gzip:workers", "gzip:workers=", "gzip:foo", "gzip:foo=", "gzip:foo=5", "gzip:=5", "gzip:=", "gzip:5,6", "gzip:5,level=3", "gzip:level=5=6",
		"gzip:level=99999999999", "gzip:level=2147483648", "gzip:level=x,foo", "gzip:foo,level=x", "gzip:level=10,workers=1", "gzip:workers=1,level=10", "gzip:5:6", "gzip::", "gzip: ",
		"lz4:", "lz4:13", "lz4:-1", "lz4:level=13", "lz4:workers=1", "zstd", "zstd:", "zstd:0", "zstd:22", "zstd:23", "zstd:-131072", "zstd:-131073", "zstd:level=3,workers=2",
		// Right: what is refused is the directory.
		"", "0", "00", "-0", "1", "9", "-1", "+5", " 5", "none", "none:0", "none:level=0", "gzip", "gzip:1", "gzip:9", "gzip:-1", "gzip: 5", "gzip:level=5", "gzip:level= 5", "gzip:level=0,level=6", "lz4", "lz4:0", "lz4:12"),
	dashZ(16, "none:long", "gzip:long", "gzip:long=", "gzip:long=on", "gzip:long=off", "gzip:long=YES", "gzip:long=0", "gzip:long=2", "gzip:long=tRuE", "gzip:long=o", "gzip:workers=1,long", "gzip:level=5,workers=x,long=q", "lz4:long", "zstd:long", "zstd:long=x"),
	lines(0, "-D /nonexistent -Zgzip:99", "-D /nonexistent --compress=bad", "-D /nonexistent --comp bad", "-Z bad -Z lz4 -D /nonexistent", "-Z lz4 -Z bad -D /nonexistent", "-Z -Z gzip -D /nonexistent",
		"-S x --create-slot -Z bad", "-S x --drop-slot -Z gzip:99"),
	// -p, behind the directory.
	lines(0, "-D / -p abc", "-D / -pabc", "-D / --port=abc", "-D / -p 5432x", "-D / -p ' '", "-D / -p 0x10", "-D / -p 99999999999", "-D / -p 0", "-D / -p -5", "-D / -p 65536", "-S x --create-slot -p abc", "-S x --drop-slot -p 0"),
	// -d.
	lines(0, "-D / -d word", "-D / -d 'host=/nonexistent bad=1'", "-D / -d host", "-S x --drop-slot -d word", "-D / -d word -p abc", "-D / -d 'host=h word'", "-D / -d 'two words'", "-D / -d bad=1", "-D / -d =h", "-D / -d HOST=h", "-D / -d 'bad=1 word'",
		"-D / -d port=abc", "-D / -d 'port=5432 port = 0'", "-D / -d port=5432 -p abc", "-D / -d port=abc -p 0", "-D / -d postgresql://h -p x", "-D / -d '  ' -p x", "-D /nonexistent -d word"),
)

// dashZ makes entries of values of -Z.
func dashZ(since int, values ...string) []dropInLine {
	out := make([]dropInLine, len(values))
	for n, v := range values {
		out[n] = dropInLine{"-D /nonexistent -Z '" + v + "'", since}
	}
	return out
}

func joined[T any](parts ...[]T) (all []T) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// dropInPieces are what lines at random are made of. Every version takes them
// for the same; nothing in them makes a connection string of its own.
var dropInPieces = []string{
	"-D /nonexistent", "-D/nonexistent", "-D /", "--directory=/nonexistent", "--dir /nonexistent", "--d", "-D", "-nvD",
	"-E 0/1", "-E x", "-E1/2junk", "--endpos=x", "--e 1/2", "--no-loop", "-n", "--no-l", "--no", "--no-l=1", "--no-sync", "--no-s", "--no-p",
	"-s 5", "-s x", "-s-1", "--st=0", "--s 5", "--status-interval", "-S x", "--slot=x", "--sl", "--sl=", "-Sx", "--synchronous", "--sy", "--sy=1",
	"-v", "-vv", "--verb", "--ver", "--version", "-V", "--help", "-?", "--hel", "-nvw", "-nQ", "-wW",
	"-Z gzip", "-Zlz4:1", "-Z 9", "-Z bad", "--compress=gzip:99", "--comp", "-Z", "-Z zstd",
	"-h /nonexistent", "-p 5432", "-p x", "--po=0", "-U u", "--us", "-w", "-W", "--pa", "--p",
	"--create-slot", "--cr", "--drop-slot", "--drop=1", "--if", "--if-not-exists", "word", "''", "-", "--", "--bad", "--=", "-:",
}

// dropInTable are command lines that go to a server. Whatever a line does not
// say about the connection comes by PGHOST, PGPORT and PGUSER. -n stands
// wherever a mistake would make the program try again for ever.
var dropInTable = []dropInCase{
	// Slots.
	{name: "create", args: "--create-slot -S {new}"},
	{name: "create, verbose", args: "--create-slot --slot={new} -v"},
	{name: "create, shortened", args: "--cr --sl {new} --if"},
	{name: "create with all other options", args: "-nvw --create-slot -S {new} -D {dir} -E 0/1 -s 1 -Z lz4 --synchronous"},
	{name: "create without looking at the directory", args: "--create-slot -S {new} -D /nonexistent"},
	{name: "create one that exists", args: "--create-slot -S {slot}", code: 1},
	{name: "create one that exists, verbose", args: "--create-slot -S {slot} -v", code: 1},
	{name: "create one that exists if not", args: "--create-slot -S {slot} --if-not-exists"},
	{name: "create one without a name", args: "--create-slot -S ''", code: 1},
	{name: "create one with a bad name", args: "--create-slot -S Bad-Name", code: 1},
	{name: "drop", args: "--drop-slot -S {slot}"},
	{name: "drop, verbose", args: "-v --drop-slot -S{slot}"},
	{name: "drop with a directory", args: "--dr -S {slot} -D {dir} -Z gzip:5 --no-sync"},
	{name: "drop one that is missing", args: "--drop-slot -S {new}", code: 1},
	{name: "drop one that is missing, if not exists", args: "--drop-slot -S {new} --if-not-exists", code: 1},

	// The ways to say the same.
	{name: "short", args: "-n -D {dir} -S {slot} -E {in2}"},
	{name: "long", args: "--no-loop --directory={dir} --slot={slot} --endpos={in2}"},
	{name: "long, values in words of their own", args: "--no-loop --directory {dir} --slot {slot} --endpos {in2}"},
	{name: "shortened", args: "--no-l --dir {dir} --sl={slot} --e {in2} --verb"},
	{name: "clusters", args: "-nvD{dir} -S{slot} -E{in2}"},
	{name: "the other way round", args: "-E {in2} -S {slot} -v -D {dir} -n"},
	{name: "nothing behind the end", args: "-n -D {dir} -S {slot} -E {in2} --"},
	{name: "the last one counts", args: "-n -D /nonexistent -S {new} -E 0/1 -Z bad -D {dir} -S {slot} -E {in2} -Z lz4"},
	{name: "verbose three times", args: "-nvvv -D {dir} -S {slot} -E {in2}"},

	// Compression.
	{name: "none", args: "-nv -D {dir} -S {slot} -E {in2} -Z none"},
	{name: "zero", args: "-n -D {dir} -S {slot} -E {in2} -Z 0"},
	{name: "gzip", args: "-nv -D {dir} -S {slot} -E {in2} -Z gzip"},
	{name: "gzip, fast", args: "-n -D {dir} -S {slot} -E {in2} -Z gzip:level=1"},
	{name: "gzip, by its level alone", args: "-n -D {dir} -S {slot} -E {in2} -Z9"},
	{name: "gzip, the default's number", args: "-n -D {dir} -S {slot} -E {in2} -Z -1"},
	{name: "lz4", args: "-nv -D {dir} -S {slot} -E {in2} -Z lz4"},
	{name: "lz4, level 1", args: "-n -D {dir} -S {slot} -E {in2} --compress=lz4:1"},
	{name: "lz4, level 12", args: "-n -D {dir} -S {slot} -E {in2} --compress=lz4:level=12"},

	// Durability and feedback.
	{name: "no sync", args: "-n -D {dir} -S {slot} -E {in2} --no-sync"},
	{name: "no sync, gzip", args: "-n -D {dir} -S {slot} -E {in2} --no-sync -Z gzip"},
	{name: "synchronous", args: "-nv -D {dir} -S {slot} -E {in2} --synchronous"},
	{name: "synchronous, lz4", args: "-n -D {dir} -S {slot} -E {in2} --synchronous -Z lz4"},
	{name: "synchronous, gzip", args: "-n -D {dir} -S {slot} -E {in2} --synchronous -Z gzip"},
	{name: "synchronous without a slot", args: "-n -D {dir} -E {flushed} --synchronous"},
	{name: "no feedback", args: "-n -D {dir} -S {slot} -E {in2} -s 0"},
	{name: "no feedback, said with nothing", args: "-n -D {dir} -S {slot} -E {in2} -s ''"},
	{name: "feedback every second", args: "-n -D {dir} -S {slot} -E {in2} --status-interval=1"},

	// Where it ends.
	{name: "end before the start", args: "-nv -D {dir} -S {slot} -E 0/1", since: 15},
	{name: "end before the start, without -n", args: "-v -D {dir} -S {slot} -E 0/1", since: 15},
	{name: "end at the start", args: "-nv -D {dir} -S {slot} -E {start0}", since: 15},
	{name: "end in the first segment", args: "-nv -D {dir} -S {slot} -E {in0}", since: 15},
	{name: "end at a segment's end", args: "-nv -D {dir} -S {slot} -E {start3}", since: 15},
	{name: "end in the last whole segment", args: "-nv -D {dir} -S {slot} -E {in5} -Z lz4", since: 15},
	{name: "end in the open segment", args: "-nv -D {dir} -S {slot} -E {flushed}", since: 15},
	{name: "end with something behind it", args: "-n -D {dir} -S {slot} -E {in2}/junk", since: 15},
	{name: "without a slot", args: "-n -D {dir} -E {flushed}"},
	{name: "without a slot, gzip", args: "-n -D {dir} -E {flushed} -Z gzip"},
	{name: "without a slot, lz4", args: "-n -D {dir} -E {flushed} -Z lz4"},
	{name: "interrupted", args: "-v -D {dir} -S {slot} --no-sync", interrupt: true, since: 15},
	{name: "interrupted, lz4", args: "-v -D {dir} -S {slot} --synchronous -Z lz4", interrupt: true, since: 15},

	// The connection.
	{name: "connection by flags", args: "-n -D {dir} -S {slot} -E {in2} -h {host} -p {port} -U postgres -w"},
	{name: "connection by long flags", args: "-n -D {dir} -S {slot} -E {in2} --host={host} --port={port} --username=postgres --no-password"},
	{name: "connection by a string", args: "-n -D {dir} -S {slot} -E {in2} -d 'host={host} port={port} user=postgres'"},
	{name: "connection by a string with a database", args: "-n -D {dir} -S {slot} -E {in2} -d 'host={host} port={port} dbname=nowhere'"},
	{name: "connection by a URI", args: "-n -D {dir} -S {slot} -E {in2} --dbname=postgresql://postgres@/?host={host}&port={port}"},
	{name: "flags win over the string", args: "-n -D {dir} -S {slot} -E {in2} -d 'host=/nonexistent port=1 user=nobody' -h {host} -p {port} -U postgres"},
	{name: "empty flags are none", args: "-n -D {dir} -S {slot} -E {in2} -h '' -p '' -U '' -d ''"},
	{name: "a port with spaces", args: "-n -D {dir} -S {slot} -E {in2} -p ' {port} '"},
	{name: "wrong port", args: "-n -D {dir} -S {slot} -p 1", code: 1, like: `^pg_receivewal: error: `},
	{name: "wrong port for a slot", args: "--create-slot -S {new} -p 1", code: 1, like: `^pg_receivewal: error: `},
	{name: "wrong host", args: "-n -D {dir} -h /nonexistent", code: 1, like: `^pg_receivewal: error: .*[Nn]o such file or directory`},
	{name: "wrong user", args: "-n -D {dir} -S {slot} -U nobody_here", code: 1, like: `^pg_receivewal: error: .*role "nobody_here" does not exist`},
	{name: "wrong user for a slot", args: "--drop-slot -S {slot} -U nobody_here", code: 1, like: `^pg_receivewal: error: .*role "nobody_here" does not exist`},
	{name: "a database name is no string", args: "-n -D {dir} -d postgres", code: 1},
	{name: "an option that nobody knows", args: "-n -D {dir} -d 'bad=1'", code: 1},

	// The directory.
	{name: "missing directory", args: "-n -D {dir}/missing -S {slot}", code: 1},
	{name: "no directory", args: "-n -D {dir}/file -S {slot}", code: 1, put: putAs("file", nil)},
	{name: "locked directory", args: "-n -D {dir}/locked -S {slot}", code: 1, put: putLocked("locked")},
	{name: "missing slot", args: "-n -D {dir} -S {new}", code: 1},
	{name: "missing slot, with an end", args: "-nv -D {dir} -S {new} -E {in2}", code: 1, since: 15},
	{name: "missing slot, and something to go on from", args: "-nv -D {dir} -S {new} -E {in3}", code: 1, put: putWhole(1, "")},

	// Going on.
	{name: "from a whole segment", args: "-nv -D {dir} -E {in3}", put: putWhole(1, "")},
	{name: "from a whole segment, with a slot", args: "-nv -D {dir} -S {slot} -E {in3}", put: putWhole(1, "")},
	{name: "from a whole gz", args: "-nv -D {dir} -E {in3} -Z gzip", put: putWhole(1, ".gz")},
	{name: "from a whole lz4", args: "-nv -D {dir} -E {in3} -Z lz4", put: putWhole(1, ".lz4")},
	{name: "from a whole lz4, without compression", args: "-nv -D {dir} -E {in3}", put: putWhole(1, ".lz4")},
	{name: "from the newest of several", args: "-nv -D {dir} -E {in4}", put: putAll(putWhole(0, ".gz"), putWhole(2, ".lz4"), putWhole(1, ""))},
	{name: "with a hole below", args: "-nv -D {dir} -E {in4}", put: putAll(putWhole(0, ""), putWhole(3, ""))},
	{name: "from behind the end", args: "-nv -D {dir} -E {in2}", put: putWhole(4, "")},
	{name: "from a partial", args: "-nv -D {dir} -E {in3}", put: putPartial(2, "")},
	{name: "from a partial, with a slot", args: "-nv -D {dir} -S {slot} -E {in3}", put: putPartial(2, "")},
	{name: "from an empty partial", args: "-nv -D {dir} -E {in3}", put: putBytes(2, ".partial", nil)},
	{name: "from a partial of a wrong size", args: "-n -D {dir} -E {in3}", code: 1, put: putBytes(2, ".partial", []byte("short"))},
	{name: "from a gz.partial", args: "-nv -D {dir} -E {in3} -Z gzip", put: putPartial(2, ".gz")},
	{name: "from an lz4.partial", args: "-nv -D {dir} -E {in3} -Z lz4", put: putPartial(2, ".lz4")},
	{name: "from a partial of another method", args: "-nv -D {dir} -E {in3} -Z lz4", put: putPartial(2, ".gz")},
	{name: "whole and partial of one segment", args: "-nv -D {dir} -E {in4}", put: putAll(putPartial(2, ""), putWhole(2, ""))},
	{name: "whole, and a newer partial", args: "-nv -D {dir} -E {in3}", put: putAll(putPartial(2, ".gz"), putWhole(1, ".gz"))},

	// What is found there and does not count, or stops it.
	{name: "other names", args: "-n -D {dir} -S {slot} -E {in2}", put: putAll(putAs("README", []byte("x")), putBytes(1, ".zst", []byte("x")), putBytes(1, ".backup", nil), putBytes(1, ".gz.tmp", nil),
		putAs("00000001.history", nil), putAs("0000000100000000000000aa", nil), putAs("00000001000000000000001", nil))},
	{name: "wrong size", args: "-nv -D {dir} -S {slot} -E {in2}", put: putBytes(1, "", []byte("short"))},
	{name: "wrong size, empty", args: "-nv -D {dir} -S {slot} -E {in2}", put: putBytes(1, "", nil)},
	{name: "wrong size in a gz", args: "-nv -D {dir} -S {slot} -E {in2} -Z gzip", put: func(st *stage) { putBytes(1, ".gz", encoded(st.t, ".gz", []byte("short")))(st) }},
	{name: "wrong size in an lz4", args: "-nv -D {dir} -S {slot} -E {in2} -Z lz4", put: func(st *stage) { putBytes(1, ".lz4", encoded(st.t, ".lz4", []byte("short")))(st) }},
	{name: "damaged lz4", args: "-n -D {dir} -S {slot} -E {in2}", code: 1, put: putBytes(1, ".lz4", bytes.Repeat([]byte("damaged"), 100)), like: `^pg_receivewal: error: could not decompress file "\{dir\}/[0-9A-F]{24}\.lz4": `},
	{name: "cut gz", args: "-n -D {dir} -S {slot} -E {in2}", code: 1, put: putBytes(1, ".gz", []byte("x"))},
	{name: "a timeline that is not there", args: "-n -D {dir} -E {in3}", code: 1, like: `^pg_receivewal: error: .*(starting timeline 5 is not present in the server|on an older timeline)`, put: func(st *stage) {
		name := st.segments[1]
		name.Timeline = 5
		st.put(name.String(), st.wal(1))
	}},
	{name: "ahead of the server", args: "-n -D {dir} -E F/0", code: 1, like: `^pg_receivewal: error: .*(ahead of the WAL flush position|behind the WAL that we hold)`, put: func(st *stage) {
		name := st.size.Name(1, 0x100A00000)
		b := st.wal(1)
		binary.NativeEndian.PutUint64(b[8:], uint64(name.Start(st.size))) // the first page's address
		st.put(name.String(), b)
	}},
}

// dropInGroupTable is for a server whose data directory its group may read:
// so may it the files.
var dropInGroupTable = []dropInCase{
	{name: "none", args: "-n -D {dir} -S {slot} -E {in2}"},
	{name: "gzip", args: "-n -D {dir} -S {slot} -E {in2} -Z gzip"},
	{name: "lz4", args: "-n -D {dir} -S {slot} -E {in2} -Z lz4"},
	{name: "from a partial", args: "-n -D {dir} -E {in3}", put: putPartial(2, "")},
	{name: "synchronous", args: "-n -D {dir} -S {slot} -E {in2} --synchronous"},
}
