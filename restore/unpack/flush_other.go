//go:build !linux

package unpack

import "os"

// flush lets the kernel begin to write a file, where there is a call for it.
func flush(*os.File) {}
