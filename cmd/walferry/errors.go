package main

import "fmt"

// The exit codes of every command but fetch.
const (
	exitFailed = 1
	exitUsage  = 2
	exitSafety = 3 // a person must decide: a unit has RestartPreventExitStatus=2 3
)

// exitError is an error that knows how the process ends. err is what was
// attempted and what went wrong, hint how to mend it ("" when there is
// nothing to say): a line each.
type exitError struct {
	code int
	err  error
	hint string
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// usageError is wrong usage, found before anything was touched.
func usageError(format string, args ...any) error {
	return &exitError{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// withExit gives err an exit code and a hint. nil stays nil.
func withExit(code int, err error, hint string) error {
	if err == nil {
		return nil
	}
	return &exitError{code: code, err: err, hint: hint}
}
