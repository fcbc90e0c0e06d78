package restore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/walferry/walferry/segment"
)

// cluster is what a data directory says of the cluster that recovers in it.
type cluster struct {
	systemIdentifier uint64 // 0: unknown
	histories        []segment.History
}

// readCluster reads system identifier and timeline histories. A data
// directory that is none, or whose pg_control cannot be read, says nothing,
// and that is no error; a history file that cannot be read is one: without it
// nobody knows where a timeline ended.
func (p Place) readCluster() (cluster, error) {
	c := cluster{systemIdentifier: p.systemIdentifier()}
	names, err := p.walNames()
	if err != nil {
		return c, err
	}
	for _, name := range names {
		t, err := segment.ParseHistoryName(name)
		if err != nil {
			continue
		}
		content, err := os.ReadFile(p.path(walDir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return c, fmt.Errorf("reading where timelines ended: %w", err)
		}
		h, err := segment.ParseHistory(t, content)
		if err != nil {
			return c, fmt.Errorf("reading where timelines ended: %s: %w", p.path(walDir), err)
		}
		c.histories = append(c.histories, h)
	}
	return c, nil
}

func (p Place) walNames() ([]string, error) {
	d, err := os.Open(p.path(walDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading where timelines ended: %w", err)
	}
	defer func() { _ = d.Close() }() // read only
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("reading where timelines ended: %w", err)
	}
	return names, nil
}

// systemIdentifier reads the first field of global/pg_control; 0 when the
// file cannot be read or is of no version that exists. The second field is
// the version, major version times 100 in the cluster's own byte order: 1300
// for 13 to 16, 1700, 1800 (PostgreSQL: ControlFileData in
// src/include/catalog/pg_control.h).
func (p Place) systemIdentifier() uint64 {
	f, err := os.Open(p.path("global", "pg_control"))
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }() // read only
	var head [12]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return 0
	}
	version := binary.NativeEndian.Uint32(head[8:])
	if version < 1000 || version > 9999 {
		return 0
	}
	return binary.NativeEndian.Uint64(head[:8])
}

// postmaster returns the server's process ID and what line 8 of
// postmaster.pid says of it: "starting", "standby", "ready", "stopping"
// (PostgreSQL: LOCK_FILE_LINE_PM_STATUS in src/include/utils/pidfile.h).
// pid is 0 when no server runs in the directory.
func (p Place) postmaster() (pid int, status string) {
	content, err := os.ReadFile(p.path("postmaster.pid"))
	if err != nil {
		return 0, ""
	}
	lines := bytes.Split(content, []byte("\n"))
	pid, err = strconv.Atoi(strings.TrimSpace(string(lines[0])))
	if err != nil || pid <= 0 || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return 0, ""
	}
	if len(lines) >= 8 {
		status = string(bytes.TrimSpace(lines[7]))
	}
	return pid, status
}

// end returns where timeline t ended by the history files. Those of several
// descendants may disagree: then first and last differ. ok is false when
// none names t as an ancestor.
func (c cluster) end(t segment.Timeline) (first, last segment.LSN, ok bool) {
	for _, h := range c.histories {
		at, is := h.Switchpoint(t)
		if !is {
			continue
		}
		if !ok || at < first {
			first = at
		}
		last = max(last, at)
		ok = true
	}
	return first, last, ok
}

// history returns timeline t's own history; nil when there is no file of it.
func (c cluster) history(t segment.Timeline) *segment.History {
	for _, h := range c.histories {
		if h.Timeline == t {
			return &h
		}
	}
	return nil
}

// heirs returns the timelines that own the WAL behind timeline t in the
// histories in which t ended at end or later.
func (c cluster) heirs(t segment.Timeline, end segment.LSN) []segment.Timeline {
	var heirs []segment.Timeline
	for _, h := range c.histories {
		if at, ok := h.Switchpoint(t); !ok || at < end {
			continue
		}
		for _, s := range h.Ancestors {
			if s.Timeline > t {
				heirs = append(heirs, s.Timeline)
			}
		}
		heirs = append(heirs, h.Timeline)
	}
	return heirs
}
