package replication

import (
	"context"
	"errors"
	"strings"
)

// Passing tells whether an error of this package may pass without a change of
// our settings, so that trying again makes sense: a server that is starting,
// stopping, full or unreachable, a name that does not resolve, a slot in use,
// and also a wrong password or a missing pg_hba.conf line, since these are
// mended on the server. Final are: protocol violations, settings that the
// server does not know, a compression that it does not have, a certificate
// that our settings do not accept, and what a person must decide (WAL removed,
// ahead, another history, slots that are missing, lost or logical). Nor is the
// cancelling of our own context.
func Passing(err error) bool {
	var se *ServerError
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, ErrClosed):
		return false
	case errors.Is(err, ErrProtocol), errors.Is(err, ErrUnsupported), certificateError(err) != nil:
		return false
	case errors.Is(err, ErrNoCompression):
		return false
	case errors.Is(err, ErrWALRemoved), errors.Is(err, ErrAhead), errors.Is(err, ErrNotInHistory), errors.Is(err, ErrNoHistory):
		return false
	case errors.Is(err, ErrSlotMissing), errors.Is(err, ErrSlotLost), errors.Is(err, ErrSlotLogical), errors.Is(err, ErrSlotExists):
		return false
	case errors.As(err, &se):
		return passingState(se.SQLSTATE)
	}
	var end *EndOfTimeline
	return !errors.As(err, &end)
}

// passingState decides by the server's SQLSTATE (PostgreSQL documentation,
// appendix "PostgreSQL Error Codes").
func passingState(state string) bool {
	switch state {
	case "28P01", "28000": // wrong password; no pg_hba.conf line, no such role, role may not log in
		return true
	case "42501": // the role has no REPLICATION attribute
		return true
	case "55006": // slot in use
		return true
	case "55000": // not the right moment: wal_level, recovery, slots invalidated just now
		return false
	}
	// 08 connection, 53 out of resources (walsenders, memory, disk), 57 an
	// operator or the server's own start and stop, 58 the system, 40 and XX
	// inside the server. What is left (22, 42, 0A, 3D) is about what we asked.
	for _, class := range []string{"08", "40", "53", "57", "58", "XX"} {
		if strings.HasPrefix(state, class) {
			return true
		}
	}
	return false
}
