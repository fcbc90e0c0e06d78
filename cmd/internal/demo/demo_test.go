package demo

import (
	"os"
	"path/filepath"
	"testing"
)

// The whole story is told by the tests in package integration.

func TestNumber(t *testing.T) {
	for n, want := range map[int]string{0: "0", 7: "7", 999: "999", 1000: "1,000", 12345: "12,345", 1000007: "1,000,007", -1234: "-1,234"} {
		if got := number(n); got != want {
			t.Errorf("number(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestPassable(t *testing.T) {
	if !passable("/") {
		t.Error("the root directory is not passable")
	}
	open := filepath.Join(t.TempDir(), "closed", "open")
	if err := os.MkdirAll(open, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(open), 0o700); err != nil {
		t.Fatal(err)
	}
	if passable(open) {
		t.Error("a directory below a closed one is passable")
	}
	if passable(filepath.Join(open, "missing")) {
		t.Error("a missing directory is passable")
	}
}
