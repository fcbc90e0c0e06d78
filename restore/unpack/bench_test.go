package unpack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// BenchmarkUnpack unpacks a backup of 128 MiB in one lz4 part, as a server
// sends it, from memory onto the disk of temporary files.
func BenchmarkUnpack(b *testing.B) {
	const files, size = 32, 4 << 20
	k := newBackup(b, "/srv")
	k.spec = nil
	k.parts = map[string][]item{"part_001.tar.lz4": {{name: "backup_label", content: "x"}, {name: "base/"}, {name: "global/"}}}
	page := content(1, 2048) + strings.Repeat("a row of a table, ", 342)[:6144]
	for i := range files {
		k.add("part_001.tar.lz4", item{name: fmt.Sprintf("base/%d", i), content: strings.Repeat(page, size/len(page))})
	}
	k.add("part_001.tar.lz4", item{name: "global/pg_control", content: content(3, 8192)})
	name, src := k.build()
	dir := b.TempDir()
	b.SetBytes(files * size)
	b.ReportAllocs()
	for b.Loop() {
		data := filepath.Join(dir, "data")
		if err := Unpack(b.Context(), src, name, Options{Dir: data}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := os.RemoveAll(data); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkSmallFiles unpacks ten thousand files of a page each.
func BenchmarkSmallFiles(b *testing.B) {
	const files = 10000
	k := newBackup(b, "/srv")
	k.spec = nil
	k.parts = map[string][]item{"part_001.tar.lz4": {{name: "backup_label", content: "x"}, {name: "base/"}, {name: "base/5/"}, {name: "global/"}, {name: "global/pg_control", content: content(3, 8192)}}}
	for i := range files {
		k.add("part_001.tar.lz4", item{name: fmt.Sprintf("base/5/%d", i), content: content(byte(i), 8192)})
	}
	name, src := k.build()
	dir := b.TempDir()
	b.ReportAllocs()
	for b.Loop() {
		data := filepath.Join(dir, "data")
		if err := Unpack(b.Context(), src, name, Options{Dir: data}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := os.RemoveAll(data); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/files, "ns/file")
}
