package replication

import (
	"errors"
)

// Passing tells whether an error may go away without a change of our
// settings.
func Passing(err error) bool {
	return !errors.Is(err, ErrProtocol)
}
