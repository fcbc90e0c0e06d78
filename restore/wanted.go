package restore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/walferry/walferry/segment"
)

// wanted is the file that PostgreSQL asks for: a segment, or the history file
// of a timeline.
type wanted struct {
	segment segment.Name     // zero when a history file is wanted
	history segment.Timeline // zero when a segment is wanted
}

func parseWanted(name string) (wanted, error) {
	if n, err := segment.ParseName(name); err == nil {
		return wanted{segment: n}, nil
	}
	if t, err := segment.ParseHistoryName(name); err == nil {
		return wanted{history: t}, nil
	}
	return wanted{}, fmt.Errorf("%q is neither a WAL segment nor a timeline history file: want 24 digits 0-9 A-F, or 8 and .history; restore_command calls fetch %%f %%p, in this order", name)
}

func (w wanted) isHistory() bool { return w.history != 0 }

// String returns the file's name.
func (w wanted) String() string {
	if w.isHistory() {
		return w.history.HistoryName()
	}
	return w.segment.String()
}

// checkTarget returns an error when no file can ever be put at target.
func checkTarget(target string) error {
	if target == "" {
		return errors.New("the target is empty: restore_command calls fetch %f %p")
	}
	if info, err := os.Stat(target); err == nil && info.IsDir() {
		return fmt.Errorf("target %s is a directory: want the file to write", target)
	}
	dir := filepath.Dir(target)
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("target %s: its directory cannot be used: %w", target, err)
	}
	if !info.IsDir() {
		return fmt.Errorf("target %s: %s is no directory", target, dir)
	}
	return nil
}
