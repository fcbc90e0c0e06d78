package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/walferry/walferry/segment"
)

// contender is one of the programs that are compared, with its arguments.
type contender struct {
	name string
	// command is what runs it, with a slot of its own and in a directory of
	// its own.
	command func(t task) *exec.Cmd
	// s3: it keeps what it receives in the S3 server.
	s3 bool
	// kept is the file of a whole segment, behind the run.
	kept func(t task, n segment.Name) string
}

// task is one run of a contender.
type task struct {
	w        *world
	dir      string
	slot     string
	end      segment.LSN // where it stops; 0: when it is told to
	endpoint string      // of the S3 server: itself, or a proxy
}

// base is the contender that the others are measured by.
const base = "pg_receivewal -Z lz4"

// The names of ours.
const (
	toDirectory = "walferry, directory"
	toS3        = "walferry, S3"
	ackArchive  = "walferry --ack archive, S3"
	noSpool     = "walferry --spool none, S3"
)

// contenders are all that there could be here.
func (w *world) contenders() []contender {
	all := []contender{
		receivewal("pg_receivewal", "none", ""),
		receivewal(base, "lz4", ".lz4"),
		directory(toDirectory, w.binary),
	}
	if w.other != "" {
		all = append(all, directory("WALFERRY_BENCH_OTHER, directory", w.other))
	}
	if w.s3 != nil {
		all = append(all, bucketed(toS3, w.binary),
			bucketed(ackArchive, w.binary, "--ack", "archive"),
			bucketed(noSpool, w.binary, "--spool", "none"))
	}
	return all
}

func receivewal(name, method, ext string, more ...string) contender {
	return contender{
		name: name,
		command: func(t task) *exec.Cmd {
			args := []string{"--dbname=" + t.w.pg.DSN("postgres"), "--slot=" + t.slot, "--directory=" + t.dir, "--no-loop"}
			args = append(args, more...)
			if ext != "" {
				// The server's 14 does not know the flag, and does nothing
				// without it.
				args = append(args, "--compress="+method)
			}
			if t.end != 0 {
				args = append(args, "--endpos="+t.end.String())
			}
			return t.w.account.Command(t.w.ctx, t.w.pg.Installation().Program("pg_receivewal"), args...)
		},
		kept: func(t task, n segment.Name) string { return filepath.Join(t.dir, n.String()+ext) },
	}
}

// walferry is the part of the command line that both stores share, and more.
func (t task) walferry(binary, store string, more []string) *exec.Cmd {
	args := []string{"receive", "-d", t.w.pg.DSN("postgres"), "--slot", t.slot, "--store", store, "--no-loop"}
	if !slices.Contains(more, "--spool") {
		args = append(args, "--spool", filepath.Join(t.dir, "spool"))
	}
	args = append(args, more...)
	if t.end != 0 {
		args = append(args, "--endpos", t.end.String())
	}
	cmd := t.w.account.Command(t.w.ctx, binary, args...)
	cmd.Env = append(cmd.Env, "HOME="+t.dir)
	return cmd
}

func directory(name, binary string, more ...string) contender {
	return contender{
		name: name,
		command: func(t task) *exec.Cmd {
			// A directory store's root must be there.
			t.w.must(t.w.account.MkdirAll(filepath.Join(t.dir, "archive")))
			return t.walferry(binary, "file://"+filepath.Join(t.dir, "archive"), more)
		},
		kept: func(t task, n segment.Name) string {
			return filepath.Join(t.dir, "archive", "wal_005", n.String()+".lz4")
		},
	}
}

func bucketed(name, binary string, more ...string) contender {
	return contender{
		name: name,
		s3:   true,
		command: func(t task) *exec.Cmd {
			cmd := t.walferry(binary, t.bucketURL(), more)
			cmd.Env = append(cmd.Env, t.w.user.Env()...)
			return cmd
		},
		kept: func(t task, n segment.Name) string {
			return filepath.Join(t.w.s3.Dir, bucket, t.slot, "wal_005", n.String()+".lz4")
		},
	}
}

// bucketURL is where the S3 server keeps a task's archive.
func (t task) bucketURL() string {
	u := "s3://" + bucket + "/" + t.slot + "?region=us-east-1&path_style=true&endpoint=" + t.endpoint
	if strings.HasPrefix(t.endpoint, "https:") {
		u += "&ca_file=" + t.w.caFile
	}
	return u
}

// figures are what one run took.
type figures struct {
	wall time.Duration
	cpu  time.Duration // user and system, of all threads
	peak int64         // resident memory, bytes

	server, store time.Duration // what these took on the same processors meanwhile
}

// child is a contender that runs.
type child struct {
	cmd   *exec.Cmd
	out   bytes.Buffer
	began time.Time
	done  chan struct{}
	err   error   // valid behind done
	used  figures // valid behind done
}

// start starts a contender. It is killed when the benchmark ends.
func (c contender) start(t task) (*child, error) {
	r := &child{cmd: c.command(t), done: make(chan struct{})}
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	r.cmd.WaitDelay = 5 * time.Second
	r.began = time.Now()
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	ended, sampled := make(chan struct{}), make(chan int64)
	go func() { sampled <- peakOf(r.cmd.Process.Pid, ended) }()
	go func() {
		r.err = r.cmd.Wait()
		r.used.wall = time.Since(r.began)
		close(ended)
		r.used.peak = <-sampled
		if state := r.cmd.ProcessState; state != nil {
			r.used.cpu = state.UserTime() + state.SystemTime()
			if u, ok := state.SysUsage().(*syscall.Rusage); ok {
				r.used.peak = peak(u.Maxrss<<10, r.used.peak, highWater("self"))
			}
		}
		close(r.done)
	}()
	t.w.b.Cleanup(func() {
		// One that has ended is as dead as we want it.
		_ = r.cmd.Process.Kill()
		<-r.done
	})
	return r, nil
}

// wait waits for a clean end.
func (r *child) wait() (figures, error) {
	<-r.done
	if r.err != nil {
		return r.used, fmt.Errorf("%s: %w:\n%s", strings.Join(r.cmd.Args, " "), r.err, bytes.TrimSpace(r.out.Bytes()))
	}
	return r.used, nil
}

// peak decides between what wait4 says and what was sampled. wait4's figure is
// exact, but the kernel counts this process's own memory in, which the child
// shared until exec (Linux: setmax_mm_hiwater_rss in exec_mmap): it says
// something about the child only when it is more than ours.
func peak(waited, sampled, ours int64) int64 {
	if waited > ours {
		return waited
	}
	return sampled
}

// peakOf looks at a process's high-water mark until it has ended.
func peakOf(pid int, ended <-chan struct{}) (most int64) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		most = max(most, highWater(strconv.Itoa(pid)))
		select {
		case <-ended:
			return most
		case <-tick.C:
		}
	}
}

// highWater is the largest resident memory that a process has had, in bytes;
// 0 when it is gone.
func highWater(process string) int64 {
	kib, err := strconv.ParseInt(strings.TrimSuffix(field("/proc/"+process+"/status", "VmHWM"), " kB"), 10, 64)
	if err != nil {
		return 0
	}
	return kib << 10
}

// check wants every whole segment from start to end to be there.
func (c contender) check(t task, start, end segment.LSN) error {
	var errs []error
	for n := segmentSize.Name(1, start); n.Start(segmentSize) < end; n = n.Next(segmentSize) {
		if _, err := os.Stat(c.kept(t, n)); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("%s did not keep everything: %w", c.name, errors.Join(errs...))
	}
	return nil
}

// task makes a directory for a run; clear removes what it left.
func (w *world) task(slot string, end segment.LSN) task {
	w.b.Helper()
	t := task{w: w, dir: filepath.Join(w.dir, "run"), slot: slot, end: end}
	if w.s3 != nil {
		t.endpoint = w.s3.URL
	}
	w.must(w.account.MkdirAll(t.dir))
	return t
}

func (t task) clear() {
	t.w.b.Helper()
	t.w.must(os.RemoveAll(t.dir))
	if t.w.s3 != nil {
		t.w.must(os.RemoveAll(filepath.Join(t.w.s3.Dir, bucket, t.slot)))
	}
}
