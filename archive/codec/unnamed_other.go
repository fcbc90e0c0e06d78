//go:build !linux

package codec

import "os"

func unnamed(dir string) (*os.File, error) { return unlinked(dir) }
