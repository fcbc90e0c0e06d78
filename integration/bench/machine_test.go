package bench

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// say prints a line at once: a benchmark's own log comes at its end.
func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// loud prints what must not be overlooked.
func loud(format string, args ...any) { say("*** "+format+" ***", args...) }

func cores() int { return runtime.NumCPU() }

// memory is the machine's.
func memory() string {
	kib, err := strconv.Atoi(strings.TrimSuffix(field("/proc/meminfo", "MemTotal"), " kB"))
	if err != nil {
		return "?"
	}
	return fmt.Sprintf("%.1f GiB", float64(kib)/(1<<20))
}

// field is a field of the first paragraph of a file that has "name: value" in
// each line; "?" where there is none.
func field(file, name string) string {
	content, err := os.ReadFile(file)
	if err != nil {
		return "?"
	}
	for line := range strings.Lines(string(content)) {
		if n, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(n) == name {
			return strings.TrimSpace(v)
		}
	}
	return "?"
}

// firstWords are the first n words of a file, "?" where there is none.
func firstWords(file string, n int) string {
	content, err := os.ReadFile(file)
	if err != nil {
		return "?"
	}
	words := strings.Fields(string(content))
	return strings.Join(words[:min(n, len(words))], " ")
}
