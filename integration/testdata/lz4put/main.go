// Lz4put stands in for "lz4 -q -f SOURCE DESTINATION" where that tool is not
// installed: it writes a frame in place, over whatever is there.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/pierrec/lz4/v4"
)

func main() {
	if err := put(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "lz4put:", err)
		os.Exit(1)
	}
}

func put(source, destination string) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	out, err := os.Create(destination)
	if err != nil {
		return errors.Join(err, in.Close())
	}
	w := lz4.NewWriter(out)
	_, err = io.Copy(w, in)
	return errors.Join(err, w.Close(), out.Close(), in.Close())
}
