package nearest

import "testing"

func TestWord(t *testing.T) {
	words := []string{"receive", "slot", "fetch", "spool", "spool-limit", "shutdown-grace", "host", "hold", "WALFERRY_HOLD", "no-loop"}
	for word, want := range map[string]string{
		"recieve":        "receive",
		"rceive":         "receive",
		"slots":          "slot",
		"fecth":          "fetch",
		"spool-lim":      "spool-limit",
		"spool_limit":    "spool-limit",
		"SPOOL-LIMIT":    "spool-limit",
		"shutdwon-grace": "shutdown-grace",
		"noloop":         "no-loop",
		"walferry_hodl":  "WALFERRY_HOLD",
		"hol":            "hold",
		"xyzzy":          "",
		"restore":        "",
		"":               "",
		"x":              "",
	} {
		got, ok := Word(word, words)
		if got != want || ok != (want != "") {
			t.Errorf("Word(%q) = %q, %v; want %q", word, got, ok, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "abc", 3}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"abc", "xbc", 1}, {"kitten", "sitting", 3}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance(%q, %q) = %d; want %d", c.a, c.b, got, c.want)
		}
	}
}
