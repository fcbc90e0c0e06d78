//go:build !linux

package tempfile

import (
	"errors"
	"io/fs"
	"os"
)

// Unnamed is errors.ErrUnsupported: only Linux can.
func Unnamed(string, fs.FileMode) (*os.File, error) { return nil, errors.ErrUnsupported }
