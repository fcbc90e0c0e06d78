package instance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// pollInterval is the pause between two looks at something that tells nobody
// when it changes (postmaster.pid, pg_control, a process that is not ours).
const pollInterval = 10 * time.Millisecond

// poll calls done until it returns true or an error, or ctx ends.
func poll(ctx context.Context, done func() (bool, error)) error {
	t := time.NewTicker(pollInterval)
	defer t.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// killTree ends a process and all of its descendants with SIGKILL and returns
// when all of them but the root, which its parent has to wait for, are gone.
//
// A server's children are no group (each calls setsid, PostgreSQL:
// InitPostmasterChild in src/backend/utils/init/miscinit.c), so they are found
// by their parents. Everything found is stopped first, from the root down, so
// that nobody starts another while we look; a child of a stopped parent cannot
// be waited for by it, so none of the numbers can come to mean another process
// before we have killed them all.
func killTree(ctx context.Context, root int) error {
	stopped := map[int]bool{}
	tree := []int{root}
	for fresh := true; fresh; {
		fresh = false
		for _, pid := range tree {
			if !stopped[pid] {
				if err := signal(pid, syscall.SIGSTOP); err != nil {
					return err
				}
				stopped[pid], fresh = true, true
			}
		}
		children, err := parents(ctx)
		if err != nil {
			return err
		}
		tree = descendants(root, children)
	}
	var errs []error
	for pid := range stopped {
		errs = append(errs, signal(pid, syscall.SIGKILL))
	}
	for pid := range stopped {
		if pid == root {
			continue
		}
		errs = append(errs, poll(ctx, func() (bool, error) { return gone(pid), nil }))
	}
	return errors.Join(errs...)
}

// KillChildren ends with SIGKILL all that a process has started and all that
// these have, and returns when it is gone. The process itself goes on, and should
// start nothing more. What has another parent by now, as a daemon has, is not
// found.
func KillChildren(ctx context.Context, parent int) error {
	for {
		all, err := parents(ctx)
		if err != nil {
			return err
		}
		var errs []error
		found := false
		for pid, p := range all {
			if p == parent && !gone(pid) {
				found = true
				errs = append(errs, killTree(ctx, pid), poll(ctx, func() (bool, error) { return gone(pid), nil }))
			}
		}
		if err := errors.Join(errs...); err != nil || !found {
			return err
		}
	}
}

// signal sends a signal; a process that is gone already is no error.
func signal(pid int, sig syscall.Signal) error {
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("sending %s to process %d: %w", sig, pid, err)
	}
	return nil
}

// descendants lists root and everything below it, parents before children.
func descendants(root int, parentOf map[int]int) []int {
	tree := []int{root}
	for i := 0; i < len(tree); i++ {
		for pid, parent := range parentOf {
			if parent == tree[i] && pid != root {
				tree = append(tree, pid)
			}
		}
	}
	return tree
}

// parents maps every process of this host to its parent.
func parents(ctx context.Context) (map[int]int, error) {
	if runtime.GOOS != "linux" {
		return parentsByPS(ctx)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	m := make(map[int]int)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if _, parent, err := stat(pid); err == nil {
			m[pid] = parent
		}
	}
	return m, nil
}

func parentsByPS(ctx context.Context) (map[int]int, error) {
	out, err := exec.CommandContext(ctx, "ps", "-axo", "pid=,ppid=").Output()
	if err != nil {
		return nil, fmt.Errorf("listing processes with ps: %w", err)
	}
	m := make(map[int]int)
	for line := range strings.Lines(string(out)) {
		var pid, parent int
		if _, err := fmt.Sscan(line, &pid, &parent); err != nil {
			return nil, fmt.Errorf("listing processes with ps: unexpected line %q", line)
		}
		m[pid] = parent
	}
	return m, nil
}

// gone tells whether a process has ended. One that nobody has waited for yet
// (a container's process 1 may never do so) has ended: it holds nothing.
func gone(pid int) bool {
	if runtime.GOOS == "linux" {
		state, _, err := stat(pid)
		return err != nil || state == 'Z' || state == 'X'
	}
	return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// stat reads a process's state and parent (proc_pid_stat(5)). The name in
// parentheses may hold anything, so the fields are counted behind the last one.
func stat(pid int) (state byte, parent int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 2 || len(fields[0]) != 1 {
		return 0, 0, fmt.Errorf("unexpected content of /proc/%d/stat", pid)
	}
	parent, err = strconv.Atoi(string(fields[1]))
	return fields[0][0], parent, err
}
