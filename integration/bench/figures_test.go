package bench

import (
	"io"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/walferry/walferry/segment"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		of   []float64
		want float64
	}{
		{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 9, 2}, 3},
	} {
		if got := median(c.of); got != c.want {
			t.Errorf("the median of %v is %v, want %v", c.of, got, c.want)
		}
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, c := range []struct {
		of   []float64
		p    float64
		want float64
	}{
		{nil, 99, 0}, {[]float64{7}, 99, 7}, {hundred, 0, 1}, {hundred, 50, 51}, {hundred, 99, 100}, {hundred, 100, 100},
	} {
		if got := percentile(c.of, c.p); got != c.want {
			t.Errorf("below %v of %d values are %v %%, want %v", got, len(c.of), c.p, c.want)
		}
	}
}

// The figures of several rounds are the medians of each round's.
func TestSummarize(t *testing.T) {
	got := summarize([]commits{
		{ms: []float64{1, 2, 3}, rate: 10},
		{ms: []float64{5, 4, 6}, rate: 30},
		{ms: []float64{8, 7, 90}, rate: 20},
	})
	if want := (summary{rate: 20, ms: 5, low: 2, high: 8, slow: 6}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := summarize(nil); got != (summary{}) {
		t.Errorf("of nothing it is %+v", got)
	}
}

func TestTable(t *testing.T) {
	got := table{{"", "s", "×"}, {"a b", "10.5", "1"}, {"ü", "9", ""}}.String()
	if want := "        s  ×\na b  10.5  1\nü       9\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// A child's peak is its own, not that of this process, whose memory it shares
// until exec.
func TestPeak(t *testing.T) {
	cat := exec.Command("cat")
	in, err := cat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	close(ended)
	most, ours := peakOf(cat.Process.Pid, ended), highWater("self")
	if most <= 0 || most >= ours {
		t.Errorf("cat has had %d bytes, this process %d", most, ours)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cat.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ waited, sampled, ours, want int64 }{
		{60, 50, 20, 60}, // the samples have missed the peak
		{20, 8, 20, 8},   // what wait4 says is ours
	} {
		if got := peak(c.waited, c.sampled, c.ours); got != c.want {
			t.Errorf("peak %v: %d", c, got)
		}
	}
}

// What children have taken counts, those included that have ended.
func TestCPUTime(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("*** no /proc: SKIPPED ***")
	}
	const work = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
	sh := exec.Command("/bin/sh", "-c", "("+work+"); echo; ("+work+"; echo; read x); true")
	in, err := sh.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := sh.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sh.Start(); err != nil {
		t.Fatal(err)
	}
	var took [2]time.Duration
	for i := range took {
		if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		took[i] = cpuTime(sh.Process.Pid)
	}
	if took[0] <= 0 || took[1] <= took[0] {
		t.Errorf("one child that has ended took %s, with one that runs %s", took[0], took[1])
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sh.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := cpuTime(sh.Process.Pid); got != 0 {
		t.Errorf("one that is gone took %s", got)
	}
}

// The lag in time is how long ago the server was where the position is.
func TestLags(t *testing.T) {
	epoch := time.Now()
	at := func(ms int, current, flush segment.LSN) sample {
		return sample{at: epoch.Add(time.Duration(ms) * time.Millisecond), current: current * 1e6, flush: flush * 1e6}
	}
	mb, ms := lags([]sample{
		at(0, 100, 100),
		at(100, 110, 0),   // nothing was reported: from the beginning on
		at(200, 120, 105), // the server was there 50 ms after the beginning
		at(300, 120, 120),
		at(400, 140, 120), // it stood there from 200 ms on
		at(500, 150, 90),  // before the beginning
	}, func(s sample) segment.LSN { return s.flush })
	if want := []float64{0, 10, 15, 0, 20, 50}; !slices.Equal(mb, want) {
		t.Errorf("MB %v, want %v", mb, want)
	}
	if want := []float64{0, 100, 150, 0, 200, 500}; !slices.Equal(ms, want) {
		t.Errorf("ms %v, want %v", ms, want)
	}
}
