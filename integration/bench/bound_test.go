package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// bound is a control group whose processes take no more of the processors than
// their share. Nil is none.
type bound struct{ parent, dir string }

// boundPeriod is in what time the share is counted. It is short, so that who
// has used his up waits for milliseconds, as for another host's answer.
const boundPeriod = 10 * time.Millisecond

// newBound makes a group of the Linux kernel's, version 1 or 2, next to the
// others of the machine. It needs root's rights. The group goes with the
// benchmark.
func newBound(b testing.TB, name string, processors float64) (*bound, error) {
	period, quota := boundPeriod.Microseconds(), int64(processors*float64(boundPeriod.Microseconds()))
	for _, version := range []struct {
		parent string
		files  [][2]string
	}{
		{"/sys/fs/cgroup/cpu", [][2]string{{"cpu.cfs_period_us", fmt.Sprint(period)}, {"cpu.cfs_quota_us", fmt.Sprint(quota)}}},
		{"/sys/fs/cgroup", [][2]string{{"cpu.max", fmt.Sprint(quota, period)}}},
	} {
		if _, err := os.Stat(filepath.Join(version.parent, "cgroup.procs")); err != nil {
			continue
		}
		g := &bound{parent: version.parent, dir: filepath.Join(version.parent, name)}
		if err := os.Mkdir(g.dir, 0o755); err != nil {
			return nil, err
		}
		b.Cleanup(func() {
			if err := errors.Join(g.empty(), os.Remove(g.dir)); err != nil {
				b.Error(err)
			}
		})
		for _, f := range version.files {
			// Without O_CREATE: the kernel makes these files, when it can.
			if err := writeGroup(filepath.Join(g.dir, f[0]), f[1]); err != nil {
				return nil, err
			}
		}
		return g, nil
	}
	return nil, errors.New("this kernel has no control groups for processors in /sys/fs/cgroup")
}

// add takes processes into the group, all threads, with the children that they
// will have.
func (g *bound) add(pids ...int) error {
	if g == nil {
		return nil
	}
	var errs []error
	for _, pid := range pids {
		// One that has ended meanwhile takes nothing.
		if err := writeGroup(filepath.Join(g.dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil && highWater(strconv.Itoa(pid)) > 0 {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// empty gives all processes back to the parent.
func (g *bound) empty() error {
	text, err := os.ReadFile(filepath.Join(g.dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	var errs []error
	for _, pid := range strings.Fields(string(text)) {
		if err := writeGroup(filepath.Join(g.parent, "cgroup.procs"), pid); err != nil && highWater(pid) > 0 {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func writeGroup(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// family is a process and its children.
func family(pid int) ([]int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil, err
	}
	all := []int{pid}
	for _, word := range strings.Fields(string(text)) {
		child, err := strconv.Atoi(word)
		if err != nil {
			return nil, err
		}
		all = append(all, child)
	}
	return all, nil
}

// Who is put into a group is in it, with his children, and comes out again.
func TestBound(t *testing.T) {
	sh := exec.Command("/bin/sh", "-c", "cat; true")
	in, err := sh.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var g *bound
	t.Run("group", func(t *testing.T) {
		g, err = newBound(t, fmt.Sprintf("walferry-test-%d", os.Getpid()), 0.5)
		if err != nil {
			t.Skipf("*** no control group: %v: SKIPPED ***", err)
		}
		if err := sh.Start(); err != nil {
			t.Fatal(err)
		}
		var all []int
		for len(all) < 2 {
			if all, err = family(sh.Process.Pid); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.add(all...); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(g.dir, "cgroup.procs"))
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, pid := range all {
			want = append(want, strconv.Itoa(pid))
		}
		if got := strings.Fields(string(text)); !slices.Equal(got, want) {
			t.Errorf("%v are in the group, want %v", got, want)
		}
	})
	if sh.Process == nil {
		return
	}
	if _, err := os.Stat(g.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the group is left: %v", err)
	}
	if err := errors.Join(in.Close(), sh.Wait()); err != nil {
		t.Error(err)
	}
	if err := (*bound)(nil).add(1); err != nil {
		t.Error(err)
	}
}
