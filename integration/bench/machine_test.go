package bench

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// say prints a line at once: a benchmark's own log comes at its end.
func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// loud prints what must not be overlooked.
func loud(format string, args ...any) { say("*** "+format+" ***", args...) }

func cores() int { return runtime.NumCPU() }

// memory is the machine's.
func memory() string {
	bytes := meminfo("MemTotal")
	if bytes == 0 {
		return "?"
	}
	return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30))
}

// meminfo is a figure of /proc/meminfo in bytes, 0 where there is none.
func meminfo(name string) int64 {
	kib, err := strconv.ParseInt(strings.TrimSuffix(field("/proc/meminfo", name), " kB"), 10, 64)
	if err != nil {
		return 0
	}
	return kib << 10
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

// cpuTime is what a process, its children, and those of them that have ended,
// have taken of the processors, in user and system mode (proc(5): stat). It is
// 0 of one that is gone.
func cpuTime(pid int) time.Duration {
	const tick = 10 * time.Millisecond // USER_HZ is 100 everywhere
	type process struct{ parent, own, ended int }
	look := func(pid string) (p process) {
		text, err := os.ReadFile("/proc/" + pid + "/stat")
		// The name, in parentheses, may have anything in it.
		end := strings.LastIndexByte(string(text), ')')
		if err != nil || end < 0 {
			return process{}
		}
		var skip string
		var user, system, endedUser, endedSystem int
		if _, err := fmt.Sscan(string(text[end+1:]), &skip, &p.parent, &skip, &skip, &skip, &skip, &skip, &skip, &skip, &skip, &skip,
			&user, &system, &endedUser, &endedSystem); err != nil {
			return process{}
		}
		p.own, p.ended = user+system, endedUser+endedSystem
		return p
	}
	p := look(strconv.Itoa(pid))
	ticks := p.own + p.ended
	all, err := os.ReadDir("/proc")
	if err != nil || pid == 0 {
		return 0
	}
	for _, e := range all {
		if child := look(e.Name()); child.parent == pid {
			ticks += child.own
		}
	}
	return time.Duration(ticks) * tick
}
