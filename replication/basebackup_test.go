package replication_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/replication/fakepg"
	"github.com/walferry/walferry/segment"
)

// versions are one server of each framing.
var versions = []string{"14.23", "15.18"}

// tarFile is content that ends as a tar file does.
func tarFile(n int, fill string) []byte {
	return append(bytes.Repeat([]byte(fill), n/len(fill)), make([]byte, 1024)...)
}

// sample is a backup with a tablespace.
func sample() fakepg.Backup {
	return fakepg.Backup{
		Start: segment.Position{Timeline: 3, LSN: 0x5000028},
		Stop:  segment.Position{Timeline: 4, LSN: 0x6000100},
		Archives: []fakepg.Archive{
			{OID: 4294967295, Location: "/srv/größer", Size: 20, Content: tarFile(20<<10, "space")},
			{OID: 16384, Location: "pg_tblspc/16384", Size: -1, Content: tarFile(0, "x")},
			{Size: 300, Content: tarFile(300<<10, "base")},
		},
		Manifest: bytes.Repeat([]byte("manifest"), 10<<10),
	}
}

// begin connects to a server and asks it for a backup.
func begin(t *testing.T, c *replication.Config, o replication.BackupOptions) *replication.BaseBackup {
	t.Helper()
	b, err := connect(t, c).BaseBackup(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// eachFraming runs f against a server of each framing.
func eachFraming(t *testing.T, f func(t *testing.T, s *fakepg.Server, c *replication.Config)) {
	t.Helper()
	for _, v := range versions {
		t.Run(v, func(t *testing.T) { fake(t, fakepg.Options{Version: v}, f) })
	}
}

// Whatever the framing and the pieces, the owner sees the same.
func TestBackup(t *testing.T) {
	eachFraming(t, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		for _, piece := range []int{1000, 32 << 10, 1 << 20} {
			want := sample()
			want.Piece = piece
			want.Notices = []*replication.ServerError{
				{Severity: "WARNING", SQLSTATE: "01000", Routine: "sendFile", Message: "checksum verification failed in file \"./base/1/2\",\nblock 7", Detail: "a\tdetail"},
				{Severity: "NOTICE", SQLSTATE: "00000", Routine: "sendFile", Message: "something"},
				{Severity: "WARNING", SQLSTATE: "01000", Routine: "sendDir", Message: "skipping special file"},
				{Severity: "WARNING", SQLSTATE: "01000", Routine: "read_file_data_into_buffer", Message: "of 17"},
			}
			s.SetBackup(want)
			b := begin(t, c, replication.BackupOptions{})
			if b.Start() != want.Start || b.Stop() != (segment.Position{}) {
				t.Errorf("start %v, stop %v", b.Start(), b.Stop())
			}
			var spaces []replication.Tablespace
			for _, a := range want.Archives {
				spaces = append(spaces, replication.Tablespace{OID: a.OID, Location: a.Location, Size: a.Size * 1024})
			}
			spaces[1].Size = -1
			if got := b.Tablespaces(); !slices.Equal(got, spaces) {
				t.Errorf("tablespaces %+v; want %+v", got, spaces)
			}
			r, err := receive(t, b)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.archives) != len(want.Archives) {
				t.Fatalf("%d archives", len(r.archives))
			}
			total := int64(0)
			for i, name := range []string{"4294967295.tar", "16384.tar", "base.tar"} {
				a := r.archives[i]
				if a.name != name || a.space != spaces[i] || !bytes.Equal(a.content, want.Archives[i].Content) {
					t.Errorf("archive %q of %+v has %d bytes; want %q, %d", a.name, a.space, len(a.content), name, len(want.Archives[i].Content))
				}
				total += int64(len(a.content))
			}
			if !bytes.Equal(r.manifest, want.Manifest) {
				t.Errorf("a manifest of %d bytes", len(r.manifest))
			}
			if n := len(r.progress); n != 3 || r.progress[2] != total || !slices.IsSorted(r.progress) {
				t.Errorf("progress %v; the archives have %d bytes", r.progress, total)
			}
			warning := func(severity, text string, suspect bool) replication.BackupMessage {
				return replication.BackupMessage{Kind: replication.BackupWarning, Severity: severity, Text: text, Suspect: suspect}
			}
			warnings := []replication.BackupMessage{
				warning("WARNING", `checksum verification failed in file "./base/1/2", block 7 (a detail)`, true),
				warning("NOTICE", "something", false), warning("WARNING", "skipping special file", false), warning("WARNING", "of 17", true),
			}
			if fmt.Sprint(r.warnings) != fmt.Sprint(warnings) {
				t.Errorf("warnings %+v", r.warnings)
			}
			if b.Stop() != want.Stop || b.Suspect() != nil {
				t.Errorf("stop %v, suspect %v", b.Stop(), b.Suspect())
			}
		}
	})
}

// A server that sends nothing of its own accord for long is shown progress of
// all the same.
func TestBackupProgressMadeUp(t *testing.T) {
	fake(t, fakepg.Options{Version: "14.23"}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		const size = 40 << 20
		s.SetBackup(fakepg.Backup{Archives: []fakepg.Archive{{Content: tarFile(size, strings.Repeat("x", 1<<20))}}, Manifest: make([]byte, size), Piece: 1 << 20})
		b := begin(t, c, replication.BackupOptions{})
		at, got := int64(0), []int64{}
		for {
			m, err := b.Next(t.Context())
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Error(err)
				}
				break
			}
			if m.Kind == replication.BackupData && len(got) < 3 {
				at += int64(len(m.Data))
			}
			if m.Kind == replication.BackupProgress {
				if got = append(got, m.Done); m.Done != at {
					t.Errorf("progress of %d bytes behind %d", m.Done, at)
				}
			}
		}
		if len(got) != 3 || got[0] != 16<<20 || got[2] != size+1024 {
			t.Errorf("progress %v", got)
		}
	})
}

func TestBackupCommand(t *testing.T) {
	for _, x := range []struct {
		o       replication.BackupOptions
		old, so string
	}{
		{replication.BackupOptions{},
			"PROGRESS NOWAIT TABLESPACE_MAP MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'",
			"PROGRESS, WAIT 0, TABLESPACE_MAP, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C'"},
		{replication.BackupOptions{Label: `it's \ ''`, Fast: true, MaxRate: 32},
			`LABEL 'it''s \ ''''' PROGRESS FAST NOWAIT MAX_RATE 32 TABLESPACE_MAP MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'`,
			`LABEL 'it''s \ ''''', PROGRESS, CHECKPOINT 'fast', WAIT 0, MAX_RATE 32, TABLESPACE_MAP, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C'`},
		{replication.BackupOptions{Compression: "lz4"}, "",
			"PROGRESS, WAIT 0, TABLESPACE_MAP, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C', COMPRESSION 'lz4'"},
		{replication.BackupOptions{Compression: "zstd", Level: 22, MaxRate: 1048576}, "",
			"PROGRESS, WAIT 0, MAX_RATE 1048576, TABLESPACE_MAP, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C', COMPRESSION 'zstd', COMPRESSION_DETAIL 'level=22'"},
	} {
		eachFraming(t, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
			s.SetBackup(sample())
			conn := connect(t, c)
			want := []string{"BASE_BACKUP (" + x.so + ")"}
			if conn.Version().Major() < 15 {
				want = []string{"BASE_BACKUP " + x.old}
			}
			b, err := conn.BaseBackup(t.Context(), x.o)
			switch {
			case err == nil:
				_ = b.Close()
			case conn.Version().Major() < 15 && x.old == "" && errors.Is(err, replication.ErrNoCompression):
				want = nil // nothing was asked
			default:
				t.Errorf("%+v: %v", x.o, err)
			}
			if got := s.Commands(); !slices.Equal(got, want) {
				t.Errorf("%+v: commands %q; want %q", x.o, got, want)
			}
		})
	}
}

// What the server would refuse, or take to the harm of its backup_label, is
// refused before anything is sent.
func TestBackupOptions(t *testing.T) {
	fake(t, fakepg.Options{}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		conn := connect(t, c)
		for _, o := range []replication.BackupOptions{
			{Label: "two\nlines"}, {Label: "a\rb"}, {Label: "a\x00b"}, {Label: "a\x7f"}, {Label: "\xff"}, {Label: strings.Repeat("x", 1024)},
			{MaxRate: -1}, {MaxRate: 31}, {MaxRate: 1048577},
			{Compression: "gzip"}, {Compression: "LZ4"}, {Compression: "none"},
			{Compression: "lz4", Level: 13}, {Compression: "zstd", Level: 23}, {Compression: "zstd", Level: -1}, {Level: 1},
		} {
			if _, err := conn.BaseBackup(t.Context(), o); err == nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("%+v: %v", o, err)
			}
		}
		if got := s.Commands(); len(got) > 0 {
			t.Errorf("commands %q", got)
		}
		s.SetBackup(sample())
		b, err := conn.BaseBackup(t.Context(), replication.BackupOptions{Label: strings.Repeat("x", 1023)})
		if err != nil {
			t.Fatal(err)
		}
		_ = b.Close()
		if _, err := conn.BaseBackup(t.Context(), replication.BackupOptions{}); !errors.Is(err, replication.ErrClosed) {
			t.Errorf("a second backup of a connection that was given away: %v", err)
		}
	})
	fake(t, fakepg.Options{Version: "13.20"}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		conn := connect(t, c)
		if _, err := conn.BaseBackup(t.Context(), replication.BackupOptions{}); !errors.Is(err, replication.ErrUnsupported) || len(s.Commands()) > 0 {
			t.Errorf("13: %v, commands %q", err, s.Commands())
		}
	})
}

// A server that cannot compress is asked again, on the same connection.
func TestBackupNoCompression(t *testing.T) {
	eachFraming(t, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		s.SetBackup(sample())
		for _, refusal := range []*replication.ServerError{
			{Severity: "ERROR", SQLSTATE: "42601", Routine: "parse_basebackup_options", Message: "this build does not support compression with LZ4"},
			{Severity: "ERROR", SQLSTATE: "0A000", Routine: "bbsink_lz4_new", Message: "lz4 compression is not supported by this build"},
		} {
			s.OnCommand(func(sql string) error {
				if strings.Contains(sql, "COMPRESSION") {
					return refusal
				}
				return nil
			})
			conn := connect(t, c)
			if _, err := conn.BaseBackup(t.Context(), replication.BackupOptions{Compression: "lz4"}); !errors.Is(err, replication.ErrNoCompression) {
				t.Fatal(err)
			}
			b, err := conn.BaseBackup(t.Context(), replication.BackupOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := receive(t, b); err != nil {
				t.Error(err)
			}
			_ = b.Close()
		}

		// Any other refusal is none of compression's.
		s.OnCommand(func(string) error {
			return &replication.ServerError{Severity: "ERROR", SQLSTATE: "42601", Routine: "parse_basebackup_options", Message: "unrecognized base backup option"}
		})
		if _, err := connect(t, c).BaseBackup(t.Context(), replication.BackupOptions{}); err == nil || errors.Is(err, replication.ErrNoCompression) {
			t.Errorf("%v", err)
		}
		s.OnCommand(func(string) error {
			return &replication.ServerError{Severity: "ERROR", SQLSTATE: "55000", Message: "WAL level not sufficient for making an online backup"}
		})
		conn := connect(t, c)
		var se *replication.ServerError
		if _, err := conn.BaseBackup(t.Context(), replication.BackupOptions{}); !errors.As(err, &se) || errors.Is(err, replication.ErrNoCompression) {
			t.Errorf("%v", err)
		}
		s.OnCommand(nil)
		if _, err := conn.IdentifySystem(t.Context()); err != nil {
			t.Errorf("the connection after a refusal: %v", err)
		}
		s.OnCommand(func(string) error {
			return &replication.ServerError{Severity: "FATAL", SQLSTATE: "57P01", Message: "terminating"}
		})
		if _, err := conn.BaseBackup(t.Context(), replication.BackupOptions{}); !errors.As(err, &se) || se.SQLSTATE != "57P01" || !replication.Passing(err) {
			t.Errorf("a fatal error: %v", err)
		}
		if _, err := conn.IdentifySystem(t.Context()); !errors.Is(err, replication.ErrClosed) {
			t.Errorf("after a fatal error: %v", err)
		}
	})
	fake(t, fakepg.Options{}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		want := sample()
		s.SetBackup(want)
		for compression, ext := range map[string]string{"lz4": ".lz4", "zstd": ".zst"} {
			r, err := receive(t, begin(t, c, replication.BackupOptions{Compression: compression}))
			if err != nil || r.archives[0].name != "4294967295.tar"+ext || r.archives[2].name != "base.tar"+ext {
				t.Errorf("%s: %v, %+v", compression, err, r.archives)
			}
		}
	})
}

// Pages that failed their checksums: the server says so at the very end.
func TestBackupSuspect(t *testing.T) {
	eachFraming(t, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		want := sample()
		want.End = &replication.ServerError{SQLSTATE: "XX001", Routine: "perform_base_backup", Message: "checksum verification failure during base backup"}
		s.SetBackup(want)
		b := begin(t, c, replication.BackupOptions{})
		r, err := receive(t, b)
		var se *replication.ServerError
		if err != nil || !errors.As(b.Suspect(), &se) || se.SQLSTATE != "XX001" || b.Stop() != want.Stop || len(r.manifest) != len(want.Manifest) {
			t.Errorf("%v, suspect %v, stop %v", err, b.Suspect(), b.Stop())
		}

		// Another error there is one, and so is this one before the end.
		for _, end := range []*replication.ServerError{{SQLSTATE: "XX000", Message: "x"}, {Severity: "FATAL", SQLSTATE: "XX001", Message: "x"}} {
			want.End = end
			s.SetBackup(want)
			b := begin(t, c, replication.BackupOptions{})
			if _, err := receive(t, b); !errors.As(err, &se) || se.SQLSTATE != end.SQLSTATE || b.Suspect() != nil || b.Stop() != (segment.Position{}) {
				t.Errorf("%v: %v, suspect %v, stop %v", end, err, b.Suspect(), b.Stop())
			}
		}
	})
}

// An error, a vanished server, a foreign message in the place of any message
// of the backup: never is it taken for complete.
func TestBackupBreaks(t *testing.T) {
	corrupt := &replication.ServerError{SQLSTATE: "XX001", Message: "checksum verification failure during base backup"}
	promoted := &replication.ServerError{SQLSTATE: "55000", Routine: "sendDir", Message: "the standby was promoted during online backup"}
	fatal := &replication.ServerError{Severity: "FATAL", SQLSTATE: "57P01", Message: "terminating connection due to administrator command"}
	serverSaid := func(want *replication.ServerError) func(error) bool {
		return func(err error) bool {
			var se *replication.ServerError
			return errors.As(err, &se) && se.SQLSTATE == want.SQLSTATE && se.Message == want.Message
		}
	}
	for name, x := range map[string]struct {
		instead func(b *fakepg.BackupSender) error
		is      func(error) bool
	}{
		"vanished": {func(*fakepg.BackupSender) error { return fakepg.ErrDrop }, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) && replication.Passing(err) }},
		"half a message": {func(b *fakepg.BackupSender) error {
			return errors.Join(b.Raw([]byte{'d', 0, 0, 1, 0, 'd', 'x'}), fakepg.ErrDrop)
		}, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		"error":     {func(b *fakepg.BackupSender) error { return b.Fail(promoted) }, serverSaid(promoted)},
		"fatal":     {func(b *fakepg.BackupSender) error { return b.Fail(fatal) }, serverSaid(fatal)},
		"corrupt":   {func(b *fakepg.BackupSender) error { return b.Fail(corrupt) }, serverSaid(corrupt)},
		"ready":     {func(b *fakepg.BackupSender) error { return b.Raw([]byte{'Z', 0, 0, 0, 5, 'I'}) }, isViolation},
		"stranger":  {func(b *fakepg.BackupSender) error { return b.Raw([]byte{'W', 0, 0, 0, 7, 0, 0, 0}) }, isViolation},
		"short":     {func(b *fakepg.BackupSender) error { return b.Raw([]byte{'d', 0, 0, 0, 3}) }, isViolation},
		"huge":      {func(b *fakepg.BackupSender) error { return b.Raw([]byte{'d', 0x7F, 0, 0, 0}) }, isViolation},
		"no error":  {func(b *fakepg.BackupSender) error { return b.Raw([]byte{'E', 0, 0, 0, 5, 'S'}) }, isViolation},
		"no notice": {func(b *fakepg.BackupSender) error { return b.Raw([]byte{'N', 0, 0, 0, 6, 'S', 'x'}) }, isViolation},
	} {
		t.Run(name, func(t *testing.T) {
			eachFraming(t, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
				backup := sample()
				total := messages(t, s, c)
				last := total - 2 // CommandComplete, and ReadyForQuery behind it
				for n := range total {
					s.CloseAfter(n)
					s.ScriptBackup(func(b *fakepg.BackupSender) error {
						err := b.Send(backup)
						if !errors.Is(err, fakepg.ErrDrop) && n <= last { // behind it the client may be gone
							t.Errorf("message %d of %d: Send = %v", n, total, err)
						}
						s.CloseAfter(-1)
						return x.instead(b)
					})
					conn := connect(t, c)
					b, err := conn.BaseBackup(t.Context(), replication.BackupOptions{})
					if err == nil {
						_, err = receive(t, b)
						_ = b.Close()
					}
					switch {
					case err == nil:
						// Complete it is when the server has said so, and
						// when it has said that all came but is corrupt.
						if n <= last && (name != "corrupt" || n < last-1) {
							t.Errorf("instead of message %d of %d: a backup", n, total)
						}
					case n > last:
						t.Errorf("behind message %d of %d: %v", n, total, err)
					case name == "corrupt" && n == last:
						t.Errorf("corrupt in the place of the last: %v", err)
					case !x.is(err):
						t.Errorf("instead of message %d of %d: %v", n, total, err)
					}
					_ = conn.Close(t.Context())
				}
				s.CloseAfter(-1)
			})
		})
	}
}

// messages counts those of a whole sample.
func messages(t *testing.T, s *fakepg.Server, c *replication.Config) int {
	t.Helper()
	total := make(chan int, 1)
	s.ScriptBackup(func(b *fakepg.BackupSender) error {
		err := b.Send(sample())
		total <- b.Messages()
		return err
	})
	b := begin(t, c, replication.BackupOptions{})
	if err := drainBackup(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	_ = b.Close() // its last message is read by nobody
	n := <-total
	if n < 30 {
		t.Fatalf("%d messages", n)
	}
	return n
}

func isViolation(err error) bool {
	return errors.Is(err, replication.ErrProtocol) && !replication.Passing(err)
}

// A notice, a parameter, a notification in the place of any message changes
// nothing.
func TestBackupAsides(t *testing.T) {
	eachFraming(t, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		want := sample()
		aside := func(b *fakepg.BackupSender) error {
			return b.Raw(slices.Concat([]byte{'S', 0, 0, 0, 8, 'a', 0, 'b', 0}, []byte{'A', 0, 0, 0, 10, 0, 0, 0, 1, 'a', 0},
				[]byte("N\x00\x00\x00\x14SNOTICE\x00MHello\x00\x00"), []byte{'N', 0, 0, 0, 5, 0}))
		}
		s.ScriptBackup(func(b *fakepg.BackupSender) error {
			b.Before = func() error { return aside(b) }
			return b.Send(want)
		})
		b := begin(t, c, replication.BackupOptions{})
		r, err := receive(t, b)
		if err != nil || !bytes.Equal(r.archives[2].content, want.Archives[2].Content) || !bytes.Equal(r.manifest, want.Manifest) || b.Stop() != want.Stop {
			t.Errorf("%v", err)
		}
		n := 0
		for _, w := range r.warnings {
			if w.Severity == "NOTICE" && w.Text == "Hello" && !w.Suspect {
				n++
			}
		}
		if len(r.warnings) != 2*n || n < 20 {
			t.Errorf("%d notices, %d of them ours", len(r.warnings), n)
		}
	})
}

// script is a server that sends what a test says, one step after the other.
type script []func(*fakepg.BackupSender) error

func (x script) play(b *fakepg.BackupSender) error {
	for _, step := range x {
		if err := step(b); err != nil {
			return err
		}
	}
	return nil
}

// What does not fit the protocol is a violation, and never a backup.
func TestBackupViolations(t *testing.T) {
	type sender = fakepg.BackupSender
	at := func(lsn segment.LSN, tl segment.Timeline) func(*sender) error {
		return func(b *sender) error { return b.Position(segment.Position{Timeline: tl, LSN: lsn}) }
	}
	start := at(0x2000028, 2)
	stop := at(0x2000100, 2)
	list := func(rows ...[]string) func(*sender) error {
		return func(b *sender) error {
			for _, r := range rows {
				var row [][]byte
				for _, v := range r {
					if v == "null" {
						row = append(row, nil)
					} else {
						row = append(row, []byte(v))
					}
				}
				if err := b.Row(row...); err != nil {
					return err
				}
			}
			return b.CommandComplete("SELECT")
		}
	}
	base := []string{"null", "null", "10"}
	space := []string{"16384", "/s", "20"}
	usual := list(space, base)
	copyOut, copyDone, manifest, complete := (*sender).CopyOut, (*sender).CopyDone, (*sender).ManifestBegins, (*sender).Complete
	archive := func(name, path string) func(*sender) error {
		return func(b *sender) error { return b.ArchiveBegins(name, path) }
	}
	data := func(text string) func(*sender) error {
		return func(b *sender) error { return b.Content([]byte(text), 1000) }
	}
	raw := func(body string) func(*sender) error {
		return func(b *sender) error { return b.CopyData([]byte(body)) }
	}
	done := func(n int64) func(*sender) error {
		return func(b *sender) error { return b.Progress(n) }
	}
	for version, cases := range map[string]map[string]script{
		"": { // both
			"no start":                     {usual, copyOut},
			"no position":                  {func(b *sender) error { return b.CommandComplete("SELECT") }, usual, copyOut},
			"two positions":                {func(b *sender) error { return b.Row([]byte("0/1000028"), []byte("1")) }, start},
			"a position of one column":     {func(b *sender) error { return b.Row([]byte("0/1000028")) }},
			"a position of nulls":          {func(b *sender) error { return b.Row(nil, nil) }},
			"a bad LSN":                    {func(b *sender) error { return b.Row([]byte("0/1000028 "), []byte("1")) }},
			"LSN zero":                     {func(b *sender) error { return b.Row([]byte("0/0"), []byte("1")) }},
			"timeline zero":                {func(b *sender) error { return b.Row([]byte("0/1000028"), []byte("0")) }},
			"no tablespaces":               {start, list(), copyOut},
			"no data directory":            {start, list(space), copyOut},
			"data directory first":         {start, list(base, space), copyOut},
			"two data directories":         {start, list(base, base), copyOut},
			"a tablespace twice":           {start, list(space, space, base), copyOut},
			"a tablespace of two columns":  {start, list([]string{"16384", "/s"}, base), copyOut},
			"a tablespace without OID":     {start, list([]string{"null", "/s", "1"}, base), copyOut},
			"a tablespace without place":   {start, list([]string{"16384", "null", "1"}, base), copyOut},
			"a tablespace in no place":     {start, list([]string{"16384", "", "1"}, base), copyOut},
			"a data directory in a place":  {start, list([]string{"null", "/s", "1"}), copyOut},
			"OID zero":                     {start, list([]string{"0", "/s", "1"}, base), copyOut},
			"OID too large":                {start, list([]string{"4294967296", "/s", "1"}, base), copyOut},
			"OID with a path":              {start, list([]string{"../16384", "/s", "1"}, base), copyOut},
			"a size below zero":            {start, list([]string{"null", "null", "-1"}), copyOut},
			"a size that overflows":        {start, list([]string{"null", "null", "9007199254740992"}), copyOut},
			"copy before the list":         {start, copyOut},
			"content before the copy":      {start, usual, raw("dx"), copyOut},
			"the end before the copy":      {start, usual, complete},
			"copy twice":                   {start, usual, copyOut, copyOut},
			"CopyDone twice":               {start, usual, copyOut, copyDone, copyDone},
			"an end in the middle of copy": {start, usual, copyOut, complete},
			"an end position in the copy":  {start, usual, copyOut, func(b *sender) error { return b.Row([]byte("0/2000100"), []byte("2")) }, complete},
		},
		"14.23": {
			"no manifest":              {start, usual, copyOut, copyDone, copyOut, data("base"), copyDone, stop, complete},
			"an archive too few":       {start, usual, copyOut, copyDone, stop, complete},
			"content between archives": {start, usual, copyOut, copyDone, data("x"), copyOut},
			"a copy too many":          {start, usual, copyOut, copyDone, copyOut, copyDone, copyOut, data("{}"), copyDone, copyOut},
			"no end position":          {start, usual, copyOut, copyDone, copyOut, copyDone, copyOut, data("{}"), copyDone, complete},
		},
		"15.18": {
			"no archive":                  {start, usual, copyOut, manifest, data("{}"), copyDone, stop, complete},
			"an archive too few":          {start, usual, copyOut, archive("base.tar", ""), data("x"), manifest, data("{}"), copyDone, stop, complete},
			"no manifest":                 {start, usual, copyOut, archive("16384.tar", "/s"), archive("base.tar", ""), copyDone, stop, complete},
			"content before archives":     {start, usual, copyOut, data("x")},
			"an archive twice":            {start, usual, copyOut, archive("16384.tar", "/s"), archive("16384.tar", "/s")},
			"archive behind manifest":     {start, list(base), copyOut, archive("base.tar", ""), manifest, archive("base.tar", "")},
			"manifest twice":              {start, list(base), copyOut, archive("base.tar", ""), manifest, manifest},
			"an unknown archive":          {start, usual, copyOut, archive("16385.tar", "/s")},
			"an archive without name":     {start, usual, copyOut, archive("", "")},
			"an archive with a slash":     {start, usual, copyOut, archive("x/base.tar", "")},
			"an archive with a dot":       {start, usual, copyOut, archive(".base.tar", "")},
			"an archive by dots":          {start, usual, copyOut, archive("../base.tar", "")},
			"another compression":         {start, usual, copyOut, archive("base.tar.lz4", "")},
			"another place":               {start, usual, copyOut, archive("16384.tar", "/t")},
			"a place of the base":         {start, usual, copyOut, archive("base.tar", "/s")},
			"an unfinished name":          {start, usual, copyOut, raw("nbase.tar")},
			"an unfinished place":         {start, usual, copyOut, raw("nbase.tar\x00")},
			"more behind the place":       {start, usual, copyOut, raw("nbase.tar\x00\x00x")},
			"more behind the manifest":    {start, list(base), copyOut, archive("base.tar", ""), raw("mx")},
			"an unknown kind":             {start, usual, copyOut, raw("x")},
			"an empty message":            {start, usual, copyOut, raw("")},
			"a short progress":            {start, usual, copyOut, raw("p1234567")},
			"a long progress":             {start, usual, copyOut, raw("p123456789")},
			"a negative progress":         {start, usual, copyOut, done(-1)},
			"no end position":             {start, list(base), copyOut, archive("base.tar", ""), manifest, copyDone, complete},
			"two end positions":           {start, list(base), copyOut, archive("base.tar", ""), manifest, copyDone, stop, stop, complete},
			"an end before the start":     {start, list(base), copyOut, archive("base.tar", ""), manifest, copyDone, at(0x2000020, 2), complete},
			"an end on an older timeline": {start, list(base), copyOut, archive("base.tar", ""), manifest, copyDone, at(0x2000100, 1), complete},
			"content behind the copy":     {start, list(base), copyOut, archive("base.tar", ""), manifest, copyDone, data("x"), stop, complete},
			"another command's end":       {start, list(base), copyOut, archive("base.tar", ""), manifest, copyDone, stop, func(b *sender) error { return b.CommandComplete("SELECT") }, (*sender).Ready},
		},
	} {
		for name, x := range cases {
			for _, v := range versions {
				if version != "" && version != v {
					continue
				}
				t.Run(v+"/"+name, func(t *testing.T) {
					fake(t, fakepg.Options{Version: v}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
						s.ScriptBackup(x.play)
						b, err := connect(t, c).BaseBackup(t.Context(), replication.BackupOptions{})
						if err == nil {
							_, err = receive(t, b)
							_ = b.Close()
						}
						if !isViolation(err) || strings.Contains(err.Error(), "\n") {
							t.Errorf("%v", err)
						}
					})
				})
			}
		}
	}
}

// What is unusual but allowed.
func TestBackupUnusual(t *testing.T) {
	type sender = fakepg.BackupSender
	empty := func(b *sender) error { return b.CopyData(nil) }
	fake(t, fakepg.Options{Version: "14.23"}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		s.ScriptBackup(script{
			func(b *sender) error { return b.Position(sample().Start) },
			func(b *sender) error { return b.Tablespaces([]fakepg.Archive{{}}) },
			(*sender).CopyOut, empty, func(b *sender) error { return b.Content([]byte("base"), 1) }, empty, (*sender).CopyDone,
			(*sender).CopyOut, empty, func(b *sender) error { return b.Content([]byte("{}"), 1) }, (*sender).CopyDone,
			func(b *sender) error { return b.Position(sample().Start) },
			(*sender).Complete,
		}.play)
		b := begin(t, c, replication.BackupOptions{})
		r, err := receive(t, b)
		if err != nil || len(r.archives) != 1 || string(r.archives[0].content) != "base"+strings.Repeat("\x00", 1024) || string(r.manifest) != "{}" || b.Tablespaces()[0].Size != 0 {
			t.Errorf("%+v, %v", r, err)
		}
	})
	fake(t, fakepg.Options{}, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		s.ScriptBackup(script{
			func(b *sender) error { return b.Begin(sample()) },
			(*sender).CopyOut,
			func(b *sender) error { return b.Progress(0) },
			func(b *sender) error { return b.ArchiveBegins("base.tar", "") },
			func(b *sender) error { return b.CopyData([]byte("d")) },
			func(b *sender) error { return b.ArchiveBegins("16384.tar", "pg_tblspc/16384") },
			func(b *sender) error { return b.Content([]byte("16384"), 1) },
			func(b *sender) error { return b.ArchiveBegins("4294967295.tar", "/srv/größer") },
			(*sender).ManifestBegins,
			func(b *sender) error { return b.CopyData([]byte("d")) },
			func(b *sender) error { return b.Content([]byte("{}"), 10) },
			func(b *sender) error { return b.Progress(1<<63 - 1) },
			(*sender).CopyDone,
			func(b *sender) error { return b.Position(sample().Start) },
			(*sender).Complete,
		}.play)
		b := begin(t, c, replication.BackupOptions{})
		r, err := receive(t, b)
		if err != nil || len(r.archives) != 3 || r.archives[0].space.OID != 0 || string(r.archives[1].content) != "16384" || string(r.manifest) != "{}" || b.Stop() != b.Start() {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// A context bounds each call, and only that.
func TestBackupContext(t *testing.T) {
	eachFraming(t, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		silent := func(b *fakepg.BackupSender) error {
			time.Sleep(time.Hour)
			return fakepg.ErrDrop
		}
		within := func(d time.Duration) context.Context {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			t.Cleanup(cancel)
			return ctx
		}
		// The checkpoint takes long.
		s.ScriptBackup(silent)
		conn := connect(t, c)
		began := time.Now()
		if _, err := conn.BaseBackup(within(time.Minute), replication.BackupOptions{}); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if _, err := conn.BaseBackup(t.Context(), replication.BackupOptions{}); !errors.Is(err, replication.ErrClosed) {
			t.Errorf("a connection that was given up: %v", err)
		}
		_ = conn.Close(t.Context())

		// The server falls silent in the place of a message.
		for n := range messages(t, s, c) - 1 { // behind the last but one it is complete
			s.CloseAfter(n)
			s.ScriptBackup(func(b *fakepg.BackupSender) error {
				if err := b.Send(sample()); !errors.Is(err, fakepg.ErrDrop) {
					t.Errorf("%v", err)
				}
				return silent(b)
			})
			conn := connect(t, c)
			b, err := conn.BaseBackup(within(time.Minute), replication.BackupOptions{})
			before := func() {}
			for err == nil {
				// Another context each time; most end when the next has come.
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				t.Cleanup(cancel)
				began := time.Now()
				_, err = b.Next(ctx)
				if waited := time.Since(began); waited > time.Minute {
					t.Errorf("silent at message %d: waited for %v", n, waited)
				}
				if before(); n%2 == 0 {
					before = cancel
				}
				synctest.Wait()
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("silent at message %d: %v", n, err)
			}
			if b != nil {
				if _, again := b.Next(t.Context()); !errors.Is(again, context.DeadlineExceeded) {
					t.Errorf("after that: %v", again)
				}
				_ = b.Close()
			}
			_ = conn.Close(t.Context())
		}
		s.CloseAfter(-1)

		// Over behind a call: with it the backup ends, also for the next.
		s.SetBackup(sample())
		behind, giveUp := context.WithCancel(t.Context())
		ended := begin(t, c, replication.BackupOptions{})
		if _, err := ended.Next(behind); err != nil {
			t.Error(err)
		}
		giveUp()
		synctest.Wait()
		for range 2 {
			if _, err := ended.Next(t.Context()); !errors.Is(err, replication.ErrClosed) || replication.Passing(err) {
				t.Errorf("behind a context that has ended: %v", err)
			}
		}

		// Over before the call, with content waiting: over.
		s.SetBackup(sample())
		b := begin(t, c, replication.BackupOptions{})
		over, cancel := context.WithCancelCause(t.Context())
		cancel(io.EOF)
		if _, err := b.Next(over); !errors.Is(err, context.Canceled) || errors.Is(err, io.EOF) || replication.Passing(err) {
			t.Errorf("%v", err)
		}
		// A context that cannot end, and one that does not.
		b = begin(t, c, replication.BackupOptions{})
		if _, err := b.Next(context.Background()); err != nil {
			t.Error(err)
		}
		if err := drainBackup(t.Context(), b); err != nil {
			t.Error(err)
		}
	})
}

// drainBackup takes the rest of a backup. The error is nil for io.EOF.
func drainBackup(ctx context.Context, b *replication.BaseBackup) error {
	for {
		if _, err := b.Next(ctx); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func TestBackupClose(t *testing.T) {
	eachFraming(t, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		// In the middle, beside a Next that waits.
		s.ScriptBackup(func(b *fakepg.BackupSender) error {
			if err := b.Begin(sample()); err != nil {
				return err
			}
			if err := b.CopyOut(); err != nil {
				return err
			}
			time.Sleep(time.Hour)
			return fakepg.ErrDrop
		})
		b := begin(t, c, replication.BackupOptions{})
		ended := make(chan error)
		go func() {
			_, err := receive(t, b)
			ended <- err
		}()
		synctest.Wait()
		for range 2 {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := <-ended; !errors.Is(err, replication.ErrClosed) || replication.Passing(err) {
			t.Errorf("Next beside Close: %v", err)
		}

		// Content that waits is not handed over any more.
		s.SetBackup(sample())
		b = begin(t, c, replication.BackupOptions{})
		if _, err := b.Next(t.Context()); err != nil {
			t.Error(err)
		}
		_ = b.Close()
		if m, err := b.Next(t.Context()); !errors.Is(err, replication.ErrClosed) {
			t.Errorf("Next after Close: %+v, %v", m, err)
		}

		// At its end it stays what it is.
		b = begin(t, c, replication.BackupOptions{})
		if _, err := receive(t, b); err != nil {
			t.Error(err)
		}
		began := time.Now()
		if err := b.Close(); err != nil || time.Since(began) != 0 {
			t.Errorf("Close: %v after %v", err, time.Since(began))
		}
		if _, err := b.Next(t.Context()); !errors.Is(err, io.EOF) || b.Stop() != sample().Stop {
			t.Errorf("Next after Close at the end: %v, stop %v", err, b.Stop())
		}
	})
}

// A temporary slot is its connection's.
func TestTemporarySlot(t *testing.T) {
	eachFraming(t, func(t *testing.T, s *fakepg.Server, c *replication.Config) {
		end := s.FillTo(segment.LSN(2 * mb))
		conn, other := connect(t, c), connect(t, c)
		if err := conn.CreateTemporarySlot(t.Context(), "Bad"); err == nil {
			t.Error("a bad name was taken")
		}
		if err := conn.CreateTemporarySlot(t.Context(), "mine"); err != nil {
			t.Fatal(err)
		}
		if at, ok := s.Slot("mine"); !ok || at != end {
			t.Errorf("the slot is at %v, %v", at, ok)
		}
		want := `CREATE_REPLICATION_SLOT "mine" TEMPORARY PHYSICAL (RESERVE_WAL)`
		if conn.Version().Major() < 15 {
			want = `CREATE_REPLICATION_SLOT "mine" TEMPORARY PHYSICAL RESERVE_WAL`
		}
		if got := s.Commands(); len(got) != 1 || got[0] != want {
			t.Errorf("commands %q; want %q", got, want)
		}
		if _, err := other.StartReplication(t.Context(), "mine", origin); !errors.Is(err, replication.ErrSlotActive) {
			t.Errorf("another's stream: %v", err)
		}
		if err := other.DropSlot(t.Context(), "mine"); !errors.Is(err, replication.ErrSlotActive) {
			t.Errorf("another's drop: %v", err)
		}
		if err := other.CreateTemporarySlot(t.Context(), "mine"); !errors.Is(err, replication.ErrSlotExists) {
			t.Errorf("another's slot of that name: %v", err)
		}
		st, err := conn.StartReplication(t.Context(), "mine", origin)
		if err != nil {
			t.Fatal(err)
		}
		if got := collect(t, st, origin.LSN, end); !bytes.Equal(got, s.WAL().Bytes(1, origin.LSN, end)) {
			t.Error("the data is not the server's")
		}
		_ = st.Close()
		synctest.Wait()
		if _, ok := s.Slot("mine"); ok {
			t.Error("the slot outlives its connection")
		}

		// A command that fails takes it along.
		if err := other.CreateTemporarySlot(t.Context(), "mine"); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Show(t.Context(), "nothing"); err == nil {
			t.Error("SHOW nothing")
		}
		if _, ok := s.Slot("mine"); ok {
			t.Error("the slot outlives a failed command")
		}
	})
}
