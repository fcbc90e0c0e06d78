package recovery

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/walferry/walferry/segment"
)

// The words of Target.Timeline that are no numbers.
const (
	Latest  = "latest"
	Current = "current"
)

// Target is where a recovery ends, in PostgreSQL's words (its documentation,
// section "Recovery Target"). The zero value is the end of the archive. At most
// one of Time, LSN, XID, Name and Immediate is set.
type Target struct {
	Time      *time.Time   // in microseconds: what is finer is cut off
	LSN       *segment.LSN // of the beginning of a record
	XID       *uint64
	Name      string // of a restore point (pg_create_restore_point)
	Immediate bool   // as soon as the backup is consistent
	// Exclusive: the recovery stops before the target (recovery_target_inclusive
	// is off); for Time, LSN and XID.
	Exclusive bool
	Timeline  string // Latest, Current, or a number; "" is Latest
	Action    string // pause, promote, shutdown; "" is the server's default, pause
}

// maxRestorePoint is the longest name of a restore point, in bytes (PostgreSQL:
// MAXFNAMELEN in src/include/access/xlog_internal.h).
const maxRestorePoint = 63

// Check refuses a target that no server takes.
func (t Target) Check() error {
	n := 0
	for _, set := range []bool{t.Time != nil, t.LSN != nil, t.XID != nil, t.Name != "", t.Immediate} {
		if set {
			n++
		}
	}
	switch {
	case n > 1:
		return errors.New("more than one recovery target: a time, an LSN, a transaction, a name and immediate exclude each other")
	case t.Exclusive && t.Time == nil && t.LSN == nil && t.XID == nil:
		return errors.New("only a time, an LSN or a transaction as recovery target can be exclusive")
	case t.XID != nil && *t.XID == 0:
		return errors.New("0 is no transaction")
	case len(t.Name) > maxRestorePoint:
		return fmt.Errorf("the name of a restore point is longer than %d bytes", maxRestorePoint)
	case strings.ContainsAny(t.Name, "\x00\n\r"):
		return errors.New("the name of a restore point holds a line end")
	case t.Action != "" && !slices.Contains([]string{"pause", "promote", "shutdown"}, t.Action):
		return fmt.Errorf("recovery target action %q: want pause, promote or shutdown", t.Action)
	case t.Action != "" && n == 0:
		return fmt.Errorf("recovery target action %s without a target: at the end of the archive the server always becomes a primary", t.Action)
	}
	_, _, err := t.timeline()
	return err
}

// timeline returns the timeline that was asked for: one of the words, or a
// number.
func (t Target) timeline() (word string, number segment.Timeline, err error) {
	switch t.Timeline {
	case "", Latest:
		return Latest, 0, nil
	case Current:
		return Current, 0, nil
	}
	n, err := strconv.ParseUint(t.Timeline, 10, 32)
	if err != nil || n == 0 || t.Timeline[0] == '+' {
		return "", 0, fmt.Errorf("recovery target timeline %q: want latest, current or a number", t.Timeline)
	}
	return "", segment.Timeline(n), nil
}

// String returns the target in words, times in UTC.
func (t Target) String() string {
	var s string
	switch {
	case t.Time != nil:
		s = "the time " + formatTime(*t.Time)
	case t.LSN != nil:
		s = "the LSN " + t.LSN.String()
	case t.XID != nil:
		s = "transaction " + strconv.FormatUint(*t.XID, 10)
	case t.Name != "":
		s = "the restore point " + strconv.Quote(t.Name)
	case t.Immediate:
		s = "the end of the backup"
	default:
		return "the end of the archive"
	}
	if t.Exclusive {
		s += ", without it"
	}
	return s
}

// formatTime writes a time for people, and as PostgreSQL reads it.
func formatTime(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.999999") + " UTC" }

// The forms of a time, without its zone, and those of a zone. Parse takes
// fractions of seconds by itself.
var (
	timeForms = [...]string{"2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02T15:04", "2006-01-02"}
	zoneForms = [...]string{"Z07:00", "-07:00", "-0700", "-07", " Z07:00", " -07:00", " -0700", " -07"}
)

// ParseTime reads RFC 3339, or what PostgreSQL prints:
// "2026-11-22 15:45:05.276797+00"; the time of day may end with the minutes or
// be left out (0:00). Without a zone it is local's; then a time that the clock
// there shows twice, or never, is an error. Names of zones are not taken, but
// for UTC and GMT: those of PostgreSQL and of this host may differ. What is
// finer than a microsecond is cut off, as a server cannot see it.
func ParseTime(text string, local *time.Location) (time.Time, error) {
	s := strings.TrimSpace(text)
	for _, utc := range []string{" UTC", " utc", " GMT", " gmt", "UTC", "GMT"} {
		if rest, ok := strings.CutSuffix(s, utc); ok {
			s = rest + "Z"
			break
		}
	}
	for _, form := range timeForms {
		for _, zone := range zoneForms {
			if t, err := time.Parse(form+zone, s); err == nil {
				return t.UTC().Truncate(time.Microsecond), nil
			}
		}
		if t, err := time.Parse(form, s); err == nil {
			return onClock(text, t.Truncate(time.Microsecond), local)
		}
	}
	return time.Time{}, fmt.Errorf("invalid time %q: want one as in 2026-11-22T15:45:05Z or \"2026-11-22 15:45:05+00\"", text)
}

// onClock returns when the clock of a place shows what wall says in UTC.
func onClock(text string, wall time.Time, local *time.Location) (time.Time, error) {
	var found []time.Time
	// Offsets of a zone that are in force at some time around it.
	for _, near := range []time.Time{wall.Add(-26 * time.Hour), wall.Add(26 * time.Hour)} {
		_, offset := near.In(local).Zone()
		t := wall.Add(-time.Duration(offset) * time.Second)
		if _, at := t.In(local).Zone(); at == offset && !slices.ContainsFunc(found, t.Equal) {
			found = append(found, t)
		}
	}
	switch len(found) {
	case 1:
		return found[0].UTC(), nil
	case 0:
		return time.Time{}, fmt.Errorf("invalid time %q: clocks in %s pass it over: say its zone, as in \"2026-11-22 15:45:05+00\"", text, local)
	}
	return time.Time{}, fmt.Errorf("invalid time %q: clocks in %s show it twice: say its zone, as in \"2026-11-22 15:45:05+00\"", text, local)
}
