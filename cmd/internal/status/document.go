// Package status is what walferry says about itself: the document, and the
// socket in the spool's directory on which a running process gives it.
//
// # The document
//
// It is a contract with programs. Fields are added, never changed or removed.
// LSNs are PostgreSQL's text ("0/3000028"), times RFC 3339 in UTC, sizes bytes,
// names of fields snake_case. What is not known, or is not there, is null.
//
// # The socket
//
// It is walferry.sock, mode 0600. Who connects is sent one document, a Process,
// and the connection is closed: nothing is read. It belongs to the process that
// holds the spool's lock; what a killed one has left is replaced.
package status

import (
	"math"
	"time"
)

// Report is the answer of "walferry status --json". Of each pair one is null.
type Report struct {
	Process   *Process `json:"process"`
	NoProcess *string  `json:"no_process"` // why nothing is said of it
	Archive   *Archive `json:"archive"`
	NoArchive *string  `json:"no_archive"`
}

// Process is what a running "walferry receive" says.
type Process struct {
	At      Time   `json:"at"` // when it was said
	PID     int    `json:"pid"`
	Version string `json:"version"`
	Started Time   `json:"started"`

	SystemIdentifier *string `json:"system_identifier"` // text: many readers of JSON round it
	SegmentSize      *uint64 `json:"wal_segment_size"`
	Server           *Server `json:"server"` // the one that was connected to last

	// State is in words: "connecting", "starting", "comparing", "streaming",
	// "waiting for room in the spool", "waiting", "stopped".
	State      string    `json:"state"`
	StateSince Time      `json:"state_since"`
	WaitingFor []Trouble `json:"waiting_for"`
	// ShippingStopped is why nothing more is stored in the archive.
	ShippingStopped *string `json:"shipping_stopped"`

	Positions Positions `json:"positions"`
	Reported  Reported  `json:"reported"`
	Slot      string    `json:"slot"`
	Ack       string    `json:"ack"`
	// CommitWaits: a commit may wait for this process, a synchronous standby.
	CommitWaits bool `json:"commit_waits"`
	Hold        Hold `json:"hold"`

	Spool          *Spool  `json:"spool"`
	Archive        string  `json:"archive"`         // URL, without secrets
	UploadsPending int     `json:"uploads_pending"` // segments, the unfinished one included
	LastObject     *Object `json:"last_object"`     // of this run
}

// Server is a PostgreSQL.
type Server struct {
	Address  string  `json:"address"` // hosts, ports and the user
	Version  string  `json:"version"`
	Timeline uint32  `json:"timeline"` // when it was connected to
	End      *string `json:"end"`      // the highest end of WAL that it has announced
}

// Trouble is something that is tried again until it works.
type Trouble struct {
	What     string `json:"what"` // completes "cannot …"
	Error    string `json:"error"`
	Since    Time   `json:"since"`
	Attempts int    `json:"attempts"`
}

// Positions are where received, spooled, shipped and sealed WAL ends.
type Positions struct {
	Received *Lagging `json:"received"`
	Spooled  *Lagging `json:"spooled"`
	Shipped  *Lagging `json:"shipped"`
	Sealed   *Lagging `json:"sealed"`
}

// Position is a place in the history of a cluster.
type Position struct {
	Timeline uint32 `json:"timeline"`
	LSN      string `json:"lsn"`
}

// Lagging is a position that follows the server's end.
type Lagging struct {
	Position
	LagBytes *uint64 `json:"lag_bytes"`
	// LagSeconds is for how long the server has had WAL behind the position.
	LagSeconds *float64 `json:"lag_seconds"`
}

// Reported is what the server was told last; null is "unknown" (0/0).
type Reported struct {
	Write *string `json:"write"`
	Flush *string `json:"flush"`
}

// Hold is the hold: WAL that the server keeps until the archive has it, too.
type Hold struct {
	LimitBytes int64 `json:"limit_bytes"` // 0: it is turned off
	InForce    bool  `json:"in_force"`
}

// Spool is where WAL lies until it is in the archive.
type Spool struct {
	Directory  string `json:"directory"`
	UsedBytes  int64  `json:"used_bytes"`
	LimitBytes int64  `json:"limit_bytes"`
}

// Object is an object of the archive.
type Object struct {
	Name   string `json:"name"` // without its folder
	Bytes  int64  `json:"bytes"`
	Stored Time   `json:"stored"` // by the clock of who says it
}

// Archive is what an archive says by itself.
type Archive struct {
	Store            string     `json:"store"` // URL, without secrets
	SystemIdentifier *string    `json:"system_identifier"`
	SegmentSize      *uint64    `json:"wal_segment_size"`
	WALCodec         *string    `json:"wal_codec"`
	Timelines        []Timeline `json:"timelines"`
	// HistoryError is why it is not known what the newest timeline comes from.
	HistoryError *string `json:"history_error"`
	// Sealed is the end of the gapless run of whole segments along the newest
	// timeline's history.
	Sealed *Position `json:"sealed"`
	// Restorable is up to where a restore would get.
	Restorable *Position `json:"restorable"`
	// BehindGap is the newest whole segment when it is out of reach: the one
	// that Missing names is not there.
	BehindGap  *string `json:"behind_gap"`
	Missing    *string `json:"missing"`
	LastObject *Object `json:"last_object"`
	// Gaps are those that were recorded, by timeline and LSN.
	Gaps []Gap `json:"gaps"`
	// Backups are all base backups, by where they stop, and Windows what they
	// make possible. Both are null when BackupsError says why they are not known.
	Backups      []Backup `json:"backups"`
	Windows      []Window `json:"recovery_windows"`
	BackupsError *string  `json:"backups_error"`
}

// Backup is a base backup in an archive; "walferry backup show" tells the rest.
type Backup struct {
	Name       string    `json:"name"`
	Error      *string   `json:"error"` // why it cannot be understood
	Finished   *Time     `json:"finished"`
	Bytes      *int64    `json:"stored_bytes"`
	Stop       *Position `json:"stop"`          // where it is consistent
	Restorable *Position `json:"restorable_to"` // null: not at all, or not as far as is known
}

// Window is a range of WAL in which every place can be restored: with the oldest
// backup that leads into it, or one that follows.
type Window struct {
	Backup   string   `json:"backup"`   // that one
	From     Position `json:"from"`     // where it is consistent
	Finished *Time    `json:"finished"` // when it was
	To       Position `json:"to"`
}

// Gap is WAL that a receiver recorded as lost for good.
type Gap struct {
	Timeline   uint32  `json:"timeline"`
	Start      string  `json:"start"`       // the first LSN that is missing
	End        string  `json:"end"`         // where WAL goes on
	RecordedAt *Time   `json:"recorded_at"` // by the receiver's clock
	Reason     *string `json:"reason"`
	Slot       *string `json:"slot"`
	Error      *string `json:"error"` // why the record does not tell the last three
}

// Timeline is a timeline in an archive.
type Timeline struct {
	Timeline uint32 `json:"timeline"`
	History  bool   `json:"history"` // its history file is there
	WAL      bool   `json:"wal"`     // WAL of it is there
	// Ended is where it ended in the newest timeline's history; null: that is
	// this one, or it is another branch.
	Ended *string `json:"ended"`
}

// Time is a time as the document has it: in UTC, in milliseconds.
type Time struct{ time.Time }

// MarshalJSON implements json.Marshaler.
func (t Time) MarshalJSON() ([]byte, error) { return t.UTC().Truncate(time.Millisecond).MarshalJSON() }

// Seconds returns d in seconds, as the document has it: in milliseconds.
func Seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }
