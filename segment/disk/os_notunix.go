//go:build !linux && !darwin

package disk

import (
	"errors"
	"os"
)

func flock(*os.File) error { return errors.ErrUnsupported }

func statfs(string) (free, total int64, err error) { return 0, 0, errors.ErrUnsupported }
