package recovery

import (
	"strings"
	"testing"
	"time"
	_ "time/tzdata"

	"github.com/walferry/walferry/segment"
)

func ptr[T any](v T) *T { return &v }

func TestParseTime(t *testing.T) {
	zone := func(name string) *time.Location {
		l, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	utc := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, c := range []struct{ text, in, want string }{
		{"2026-11-22T15:45:05Z", "Asia/Tokyo", "2026-11-22T15:45:05Z"},
		{"2026-11-22T15:45:05.276797+02:00", "Asia/Tokyo", "2026-11-22T13:45:05.276797Z"},
		{"2026-11-22T15:45:05.123456789Z", "UTC", "2026-11-22T15:45:05.123456Z"},
		{"2026-11-22 15:45:05.276797+00", "Asia/Tokyo", "2026-11-22T15:45:05.276797Z"},
		{"2026-11-22 15:45:05+05:30", "Asia/Tokyo", "2026-11-22T10:15:05Z"},
		{"2026-11-22 15:45:05-0330", "Asia/Tokyo", "2026-11-22T19:15:05Z"},
		{"2026-11-22 15:45:05 +01", "Asia/Tokyo", "2026-11-22T14:45:05Z"},
		{"2026-11-22 15:45:05 UTC", "Asia/Tokyo", "2026-11-22T15:45:05Z"},
		{"2026-11-22 15:45:05.5 GMT", "Asia/Tokyo", "2026-11-22T15:45:05.5Z"},
		{"2026-11-22 15:45+00", "Asia/Tokyo", "2026-11-22T15:45:00Z"},
		{"2026-11-22 15:45:05", "Asia/Tokyo", "2026-11-22T06:45:05Z"},
		{"2026-11-22T15:45:05", "Asia/Tokyo", "2026-11-22T06:45:05Z"},
		{"2026-11-22 15:45", "Asia/Tokyo", "2026-11-22T06:45:00Z"},
		{"2026-11-22", "Asia/Tokyo", "2026-11-21T15:00:00Z"},
		{" 2026-11-22 ", "UTC", "2026-11-22T00:00:00Z"},
		{"2026-07-01 12:00:00", "Europe/Berlin", "2026-07-01T10:00:00Z"},
		{"2026-12-01 12:00:00", "Europe/Berlin", "2026-12-01T11:00:00Z"},
		{"2026-10-25 01:59:59", "Europe/Berlin", "2026-10-24T23:59:59Z"},
		{"2026-10-25 03:00:00", "Europe/Berlin", "2026-10-25T02:00:00Z"},
		{"2026-10-25 02:30:00+02", "Europe/Berlin", "2026-10-25T00:30:00Z"},
		{"2026-03-29 01:59:59", "Europe/Berlin", "2026-03-29T00:59:59Z"},
		{"2026-03-29 03:00:00", "Europe/Berlin", "2026-03-29T01:00:00Z"},
	} {
		got, err := ParseTime(c.text, zone(c.in))
		if err != nil || !got.Equal(utc(c.want)) || got.Location() != time.UTC {
			t.Errorf("%q in %s: %s, %v; want %s", c.text, c.in, got, err, c.want)
		}
	}
	for _, c := range []struct{ text, in, want string }{
		{"", "UTC", "want one as in"},
		{"now", "UTC", "want one as in"},
		{"2026-13-01", "UTC", "want one as in"},
		{"2026-02-30 00:00:00", "UTC", "want one as in"},
		{"2026-11-22 15:45:05 CET", "UTC", "want one as in"},
		{"2026-11-22 25:00:00", "UTC", "want one as in"},
		{"22.11.2026", "UTC", "want one as in"},
		{"2026-11-22 15:45:05+00 and more", "UTC", "want one as in"},
		{"1700000000", "UTC", "want one as in"},
		{"2026-10-25 02:30:00", "Europe/Berlin", "show it twice"},
		{"2026-10-25 02:00:00", "Europe/Berlin", "show it twice"},
		{"2026-03-29 02:30:00", "Europe/Berlin", "pass it over"},
		{"2026-04-05 01:45:00", "Australia/Lord_Howe", "show it twice"},
		{"2011-12-30 12:00:00", "Pacific/Apia", "pass it over"},
	} {
		if got, err := ParseTime(c.text, zone(c.in)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q in %s: %s, %v; want %q", c.text, c.in, got, err, c.want)
		}
	}
}

func TestTarget(t *testing.T) {
	at := time.Date(2026, 11, 22, 15, 45, 5, 276797000, time.FixedZone("", 3600))
	for _, c := range []struct {
		target Target
		want   string
	}{
		{Target{}, "the end of the archive"},
		{Target{Time: &at}, "the time 2026-11-22 14:45:05.276797 UTC"},
		{Target{Time: &at, Exclusive: true}, "the time 2026-11-22 14:45:05.276797 UTC, without it"},
		{Target{LSN: ptr(segment.LSN(0x1600000000))}, "the LSN 16/0"},
		{Target{XID: ptr(uint64(5)), Timeline: "7", Action: "promote"}, "transaction 5"},
		{Target{Name: "before lunch", Timeline: Current}, `the restore point "before lunch"`},
		{Target{Immediate: true, Timeline: Latest}, "the end of the backup"},
	} {
		if err := c.target.Check(); err != nil || c.target.String() != c.want {
			t.Errorf("%+v: %q, %v; want %q", c.target, c.target, err, c.want)
		}
	}
	for _, c := range []struct {
		target Target
		want   string
	}{
		{Target{Time: &at, Immediate: true}, "exclude each other"},
		{Target{LSN: ptr(segment.LSN(1)), Name: "x"}, "exclude each other"},
		{Target{Exclusive: true}, "can be exclusive"},
		{Target{Name: "x", Exclusive: true}, "can be exclusive"},
		{Target{XID: ptr(uint64(0))}, "no transaction"},
		{Target{Name: strings.Repeat("x", 64)}, "longer than 63"},
		{Target{Name: "a\nb"}, "line end"},
		{Target{Name: "x", Action: "stop"}, "want pause"},
		{Target{Action: "promote"}, "without a target"},
		{Target{Timeline: "0"}, "want latest"},
		{Target{Timeline: "newest"}, "want latest"},
		{Target{Timeline: "+1"}, "want latest"},
		{Target{Timeline: "4294967296"}, "want latest"},
	} {
		if err := c.target.Check(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v; want %q", c.target, err, c.want)
		}
	}
}
