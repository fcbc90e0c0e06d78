package restore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/walferry/walferry/archive"
)

// A standby asks for several files in turn, at its own pace, and can neither
// stream nor be promoted while it waits for an answer: with 12 s a call a
// promotion was seen to take 47 s. So a call that used up its budget leaves a
// note, and the calls that follow within memoryLasts fail at once.
//
// The note is worth no care: one that is lost, cut or old is none.

const (
	memoryLasts = 5 * time.Second
	memoryFile  = "pgsql_tmp_walferry_failure" // in pg_wal; see temporaryPrefix
)

// failure is the note.
type failure struct {
	At     time.Time `json:"at"`
	File   string    `json:"file,omitempty"` // the only one that it concerns; empty: any
	Reason string    `json:"reason"`
}

// rememberFailure notes that name was not delivered at time now because of err.
func (p Place) rememberFailure(name string, err error, now time.Time) error {
	note := failure{At: now, Reason: err.Error()}
	for _, own := range []error{ErrHole, errDisputed, errStoredMeanwhile, archive.ErrNoDecoder, archive.ErrConflict, archive.ErrVanished} {
		if damaged(err) || errors.Is(err, own) {
			note.File = name // it says nothing about other files
		}
	}
	content, err := json.Marshal(note)
	if err != nil {
		return fmt.Errorf("encoding a failure: %w", err)
	}
	return os.WriteFile(p.path(walDir, memoryFile), content, 0o600)
}

// recallFailure returns an error when a failure that concerns name is
// remembered at time now.
func (p Place) recallFailure(name string, now time.Time) error {
	content, err := os.ReadFile(p.path(walDir, memoryFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var note failure
	if err != nil || json.Unmarshal(content, &note) != nil {
		return nil // no note
	}
	age := now.Sub(note.At)
	if age < 0 || age >= memoryLasts || note.File != "" && note.File != name {
		return nil
	}
	return fmt.Errorf("not tried, after a failure %s ago: %s", age.Round(100*time.Millisecond), note.Reason)
}
