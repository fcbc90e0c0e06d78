package tempfile

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Unnamed makes an empty file in dir, for reading and writing, with the
// permissions perm before the umask (open(2), O_TMPFILE). errors.ErrUnsupported:
// the file system of dir cannot, as NFS cannot.
func Unnamed(dir string, perm fs.FileMode) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDWR|os.O_EXCL|unix.O_TMPFILE, perm)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) {
		return nil, errors.ErrUnsupported
	}
	return f, err
}
