package pgreceivewal

import "testing"

func TestCompression(t *testing.T) {
	for text, want := range map[string]Compression{
		"": {}, "0": {}, "00": {}, "-0": {}, "+0": {}, "none": {}, "none:0": {}, "none:level=0": {},
		"1": {Gzip, 1}, "9": {Gzip, 9}, "-1": {Gzip, 0}, "+5": {Gzip, 5}, " 5": {Gzip, 5}, "05": {Gzip, 5},
		"gzip": {Gzip, 0}, "gzip:1": {Gzip, 1}, "gzip:9": {Gzip, 9}, "gzip:-1": {Gzip, 0}, "gzip: 5": {Gzip, 5}, "gzip:+5": {Gzip, 5},
		"gzip:level=5": {Gzip, 5}, "gzip:level=-1": {Gzip, 0}, "gzip:level= 5": {Gzip, 5}, "gzip:level=5,level=6": {Gzip, 6}, "gzip:level=0,level=6": {Gzip, 6},
		"lz4": {LZ4, 0}, "lz4:0": {LZ4, 0}, "lz4:1": {LZ4, 1}, "lz4:12": {LZ4, 12}, "lz4:level=12": {LZ4, 12},
	} {
		if got, err := ParseCompression(text); err != nil || got != want {
			t.Errorf("%q: got %+v, %v; want %+v", text, got, err, want)
		}
	}
}

// What is said here was said by the pg_receivewal of PostgreSQL 17 and 18, and
// by 15's but for "long". (Twenty nines wrap around to gzip's default there.)
func TestCompressionRefused(t *testing.T) {
	const (
		spec  = "invalid compression specification: "
		empty = spec + "found empty string where a compression option was expected"
		gzip  = spec + `compression algorithm "gzip" expects a compression level between 1 and 9 (default at -1)`
		lz4   = spec + `compression algorithm "lz4" expects a compression level between 1 and 12 (default at 0)`
		zstd  = spec + `compression algorithm "zstd" expects a compression level between -131072 and 22 (default at 3)`
		later = "compression with ZSTD is not yet supported"
		level = spec + `value for compression option "level" must be an integer`
		count = spec + `value for compression option "workers" must be an integer`
		long  = spec + `value for compression option "long" must be a Boolean value`
	)
	unknown := func(what string) string { return spec + `unrecognized compression option: "` + what + `"` }
	method := func(name string) string { return `unrecognized compression algorithm: "` + name + `"` }
	without := func(name, what string) string { return spec + `compression algorithm "` + name + `" does not ` + what }
	for text, want := range map[string]string{
		"10": gzip, "-2": gzip, "99999999999": gzip, "99999999999999999999": gzip, "-99999999999999999999": gzip,
		"gzip:0": gzip, "gzip:10": gzip, "gzip:-2": gzip, "gzip:99999999999": gzip, "gzip:level=0": gzip, "gzip:level=2147483648": gzip,
		"gzip:level=10,workers=1": gzip, "gzip:workers=1,level=10": gzip,
		"lz4:13": lz4, "lz4:-1": lz4, "lz4:level=13": lz4,
		"zstd:23": zstd, "zstd:-131073": zstd, "zstd:-999999999": zstd,
		"zstd": later, "zstd:0": later, "zstd:22": later, "zstd:-5": later, "zstd:level=3,workers=2": later, "zstd:level=3,workers=2,long": later,
		"none:": empty, "gzip:": empty, "lz4:": empty, "zstd:": empty, "gzip:,": empty, "gzip:level=5,": empty, "gzip:,level=5": empty,
		"gzip:level=5,,workers=1": empty, "gzip:=5": empty, "gzip:=": empty,
		"5 ": method("5 "), "5x": method("5x"), "0x5": method("0x5"), " ": method(" "), "-": method("-"), "5:5": method("5"), "0:5": method("0"), ":5": method(""),
		"NONE": method("NONE"), "GZIP": method("GZIP"), "bzip2:5": method("bzip2"), " gzip": method(" gzip"), "gzip ": method("gzip "), "client-gzip": method("client-gzip"),
		"gzip:abc": unknown("abc"), "gzip:5x": unknown("5x"), "gzip:5 ": unknown("5 "), "gzip:0x5": unknown("0x5"), "gzip:LEVEL=5": unknown("LEVEL"),
		"gzip:level =5": unknown("level "), "gzip:foo=5": unknown("foo"), "gzip:5,6": unknown("5"), "gzip:5:6": unknown("5:6"), "gzip::": unknown(":"),
		"gzip: ": unknown(" "), "gzip:foo,level=x": unknown("foo"),
		"gzip:level=": level, "gzip:level=x": level, "gzip:level=5 ": level, "gzip:level=5=6": level, "gzip:level=x,foo": level, "gzip:level= ": level,
		"gzip:workers=x": count, "gzip:workers=": count, "gzip:level=5,workers=x,long=q": count,
		"gzip:long=": long, "gzip:long=2": long, "gzip:long=tRuE": long, "gzip:long=o": long, "gzip:long=y": long, "zstd:long=x": long,
		"gzip:level": spec + `compression option "level" requires a value`, "gzip:workers": spec + `compression option "workers" requires a value`,
		"none:1": without("none", "accept a compression level"), "none:level=1": without("none", "accept a compression level"),
		"none:workers=1": without("none", "accept a worker count"), "gzip:workers=0": without("gzip", "accept a worker count"),
		"lz4:workers=1": without("lz4", "accept a worker count"), "gzip:workers=1,long": without("gzip", "accept a worker count"),
		"none:long": without("none", "support long-distance mode"), "gzip:long=YES": without("gzip", "support long-distance mode"),
		"lz4:long": without("lz4", "support long-distance mode"), "gzip:long=off": without("gzip", "support long-distance mode"),
	} {
		if got, err := ParseCompression(text); err == nil || err.Error() != want {
			t.Errorf("%q: got %+v, %v; want %s", text, got, err, want)
		}
	}
}
