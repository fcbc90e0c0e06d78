package codec

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// unnamed opens a temporary file in dir that never has a name, so that the
// space comes back whatever happens to the process, and nobody who looks into
// dir sees it (open(2), O_TMPFILE). Not every file system can (NFS cannot): there
// it has a name for a moment.
func unnamed(dir string) (*os.File, error) {
	file, err := os.OpenFile(dir, os.O_RDWR|os.O_EXCL|unix.O_TMPFILE, 0o600)
	switch {
	case err == nil:
		return file, nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EISDIR), errors.Is(err, unix.EINVAL):
		return unlinked(dir)
	}
	return nil, fmt.Errorf("making a temporary file for a frame: %w", err)
}
