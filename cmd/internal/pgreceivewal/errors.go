package pgreceivewal

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
)

// Error is what ends the program, in up to three parts that Print writes as
// the original does. A part that is "" is not there.
type Error struct {
	Message string // what is wrong
	Detail  string
	Hint    string // what would be right
	Raw     bool   // Message is getopt's: a whole line, with the program's name in it
}

// Error returns Message, or what stands for it where the original prints a
// hint alone.
func (e *Error) Error() string {
	if e.Message == "" {
		return e.Hint
	}
	return e.Message
}

// Print writes the error's lines: "program: error: ...", "program: detail: ..."
// and "program: hint: ...", in one call of w.Write. The parts are written as
// they are: a name with a line break in it breaks the line, as it does in the
// original's message. That w cannot be written to is not reported: it is where
// it would be reported.
func (e *Error) Print(w io.Writer, program string) {
	var b strings.Builder
	switch {
	case e.Message == "":
	case e.Raw:
		fmt.Fprintf(&b, "%s\n", e.Message)
	default:
		fmt.Fprintf(&b, "%s: error: %s\n", program, e.Message)
	}
	if e.Detail != "" {
		fmt.Fprintf(&b, "%s: detail: %s\n", program, e.Detail)
	}
	if e.Hint != "" {
		fmt.Fprintf(&b, "%s: hint: %s\n", program, e.Hint)
	}
	_, _ = io.WriteString(w, b.String())
}

// fatal is an error without a hint.
func fatal(format string, args ...any) *Error {
	return &Error{Message: fmt.Sprintf(format, args...)}
}

// tryHelp is the hint of wrong usage.
func tryHelp(program string) string {
	return fmt.Sprintf(`Try "%s --help" for more information.`, program)
}

// DirectoryError is the error for a directory that cannot be opened, from
// what opening it returned.
func DirectoryError(directory string, err error) *Error {
	return fatal(`could not open directory "%s": %s`, directory, Reason(err))
}

// Reason returns why the operating system refused something, in the words of
// C's strerror: the original's messages end in them. An error that is not the
// system's has its own text.
func Reason(err error) string {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	// Go's table is glibc's, but for the first letter.
	text := errno.Error()
	return strings.ToUpper(text[:1]) + text[1:]
}
