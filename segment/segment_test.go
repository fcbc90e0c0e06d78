package segment

import (
	"strings"
	"testing"
)

func TestLSN(t *testing.T) {
	for text, want := range map[string]LSN{"0/0": 0, "16/B374D848": 0x16B374D848, "ffffffff/ffffffff": 0xFFFFFFFFFFFFFFFF, "1/0000000A": 0x10000000A} {
		got, err := ParseLSN(text)
		if err != nil || got != want {
			t.Errorf("ParseLSN(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, bad := range []string{"", "/", "0", "0/", "/0", "0/0 ", " 0/0", "0/0x", "123456789/0", "0/123456789", "0/0/0", "G/0", "+1/0", "-1/0", "0:/0", "1/;"} {
		if l, err := ParseLSN(bad); err == nil {
			t.Errorf("ParseLSN(%q) = %v; want an error", bad, l)
		}
	}
	if s := LSN(0x16B374D848).String(); s != "16/B374D848" {
		t.Errorf("String = %q", s)
	}
}

func FuzzLSN(f *testing.F) {
	f.Add("16/B374D848")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLSN(s)
		if err != nil {
			return
		}
		if back, err := ParseLSN(l.String()); err != nil || back != l {
			t.Fatalf("%q -> %v -> %v, %v", s, l, back, err)
		}
	})
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{"1MB": 1 << 20, "16MB": 16 << 20, "1GB": 1 << 30, "512MB": 512 << 20, "1024MB": 1 << 30} {
		got, err := ParseSize(text)
		if err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, bad := range []string{"", "16", "3MB", "2GB", "0MB", "MB", "16kB", "-16MB", "16MB "} {
		if s, err := ParseSize(bad); err == nil {
			t.Errorf("ParseSize(%q) = %d; want an error", bad, s)
		}
	}
}

func TestName(t *testing.T) {
	for _, c := range []struct {
		size Size
		t    Timeline
		l    LSN
		want string
	}{
		{16 << 20, 1, 0, "000000010000000000000000"},
		{16 << 20, 1, 0xFF000000, "0000000100000000000000FF"},
		{16 << 20, 0xA, 0x100000000, "0000000A0000000100000000"},
		{64 << 20, 1, 0xFFFFFFFF, "00000001000000000000003F"},
		{1 << 30, 2, 0x2C0000001, "000000020000000200000003"},
		{1 << 20, 1, 0x1FFFFFFFF, "000000010000000100000FFF"},
	} {
		n := c.size.Name(c.t, c.l)
		if n.String() != c.want {
			t.Errorf("Name(%d, %d, %v) = %s; want %s", c.size, c.t, c.l, n, c.want)
		}
		p, err := ParseName(c.want)
		if err != nil || p != n {
			t.Errorf("ParseName(%s) = %v, %v", c.want, p, err)
		}
		if n.Start(c.size) != c.size.Start(c.l) || n.End(c.size) != n.Start(c.size)+LSN(c.size) {
			t.Errorf("%s: start %v, end %v", n, n.Start(c.size), n.End(c.size))
		}
		if n.Check(c.size) != nil {
			t.Errorf("%s: %v", n, n.Check(c.size))
		}
		if next := n.Next(c.size); next.Start(c.size) != n.End(c.size) || next.Compare(n) != 1 || strings.Compare(next.String(), n.String()) != 1 {
			t.Errorf("%s: next %s", n, next)
		}
	}
	// A regular expression of the kind [0-F] would let in what lies between 9 and A.
	for _, bad := range []string{"", "00000001000000000000000", "0000000100000000000000011", "00000001000000000000000a", "00000001000000000000000:", "00000001000000000000000@", "000000000000000000000001", "000000010000000000000001.gz"} {
		if n, err := ParseName(bad); err == nil {
			t.Errorf("ParseName(%q) = %v; want an error", bad, n)
		}
	}
	if (Name{1, 0, 0x40}).Check(64<<20) == nil {
		t.Error("a name that no 64 MB cluster has was accepted")
	}
}

func TestHistoryName(t *testing.T) {
	if got, err := ParseHistoryName("0000000A.history"); err != nil || got != 10 || got.HistoryName() != "0000000A.history" {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", ".history", "0000000a.history", "00000000.history", "00000001.history.gz", "1.history", "00000001"} {
		if _, err := ParseHistoryName(bad); err == nil {
			t.Errorf("ParseHistoryName(%q): want an error", bad)
		}
	}
}

func TestHistory(t *testing.T) {
	h, err := ParseHistory(4, []byte("1\t0/3000000\tno recovery target specified\n\n# a comment\n3\t0/5000028\tbefore 2026-11-22 09:00:00+00\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Ancestors) != 2 || h.Ancestors[1].Reason != "before 2026-11-22 09:00:00+00" || h.Begin() != 0x5000028 {
		t.Fatalf("%+v", h)
	}
	for l, want := range map[LSN]Timeline{0: 1, 0x2FFFFFF: 1, 0x3000000: 3, 0x5000027: 3, 0x5000028: 4, 0x9000000: 4} {
		if got := h.Owner(l); got != want {
			t.Errorf("Owner(%v) = %d; want %d", l, got, want)
		}
	}
	for tl, want := range map[Timeline]LSN{1: 0, 2: 0, 3: 0x3000000, 4: 0x5000028, 9: 0} {
		if got := h.BeginOf(tl); got != want {
			t.Errorf("BeginOf(%d) = %v; want %v", tl, got, want)
		}
	}
	for p, want := range map[Position]bool{{1, 0x3000000}: true, {1, 0x3000001}: false, {2, 0x1000000}: false, {3, 0x5000028}: true, {4, 0x9000000}: true, {5, 1}: false} {
		if got := h.Contains(p); got != want {
			t.Errorf("Contains(%v) = %v; want %v", p, got, want)
		}
	}
	for _, bad := range []string{"", "# nothing\n", "x\t0/1\n", "1\n", "1\t0/1x\n", "4\t0/1\n", "2\t0/5\tr\n1\t0/6\tr\n", "0\t0/1\n"} {
		if h, err := ParseHistory(4, []byte(bad)); err == nil {
			t.Errorf("ParseHistory(%q) = %+v; want an error", bad, h)
		}
	}
	// A recovery along timeline 2, which began at 0/5000000, that ended at 0/4000000.
	h, err = ParseHistory(3, []byte("1\t0/5000000\tr\n2\t0/4000000\tr\n"))
	if err != nil || h.Begin() != 0x4000000 || h.Owner(0x3FFFFFF) != 1 || h.Owner(0x4000000) != 3 || h.Owner(0x5000000) != 3 {
		t.Errorf("%+v, %v", h, err)
	}
	for p, want := range map[Position]bool{{1, 0x4000000}: true, {1, 0x4000001}: false, {2, 0x5000001}: false, {3, 0x4000001}: true} {
		if got := h.Contains(p); got != want {
			t.Errorf("Contains(%v) = %v; want %v", p, got, want)
		}
	}
	if h, err := ParseHistory(1, nil); err != nil || h.Owner(5) != 1 || h.Begin() != 0 {
		t.Errorf("timeline 1: %+v, %v", h, err)
	}
}
