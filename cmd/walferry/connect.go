package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/walferry/walferry/cmd/internal/settings"
	"github.com/walferry/walferry/replication"
)

// connection reads the connection settings. What they name is checked;
// nothing is connected yet.
func (c *call) connection() (*replication.Config, error) { return c.connectionAs("walferry") }

// connectionAs is connection with another application_name, where the settings
// give none.
func (c *call) connectionAs(application string) (*replication.Config, error) {
	params := replication.Params{
		DSN:             c.set.Text("dsn"),
		Host:            c.set.Text("host"),
		Port:            c.set.Text("port"),
		User:            c.set.Text("username"),
		Database:        c.set.Text("dbname"),
		ApplicationName: application,
		NoPassword:      c.set.Bool("no-password"),
		Names:           map[string]string{},
	}
	if c.flags.Bool("password") {
		if params.NoPassword {
			return nil, usageError("--password and --no-password (%s) exclude each other", c.set.Value("no-password").Origin)
		}
		params.Password = promptPassword
	}
	for field, name := range map[string]string{"DSN": "dsn", "Host": "host", "Port": "port", "User": "username"} {
		if v := c.set.Value(name); v.IsSet() && v.Origin.Source != settings.Flag {
			params.Names[field] = v.Origin.String()
		}
	}
	config, err := replication.ParseConfig(params)
	if err != nil {
		return nil, withExit(exitUsage, err, "")
	}
	for _, notice := range config.Notices() {
		c.log.Warn(notice)
	}
	return config, nil
}

// hasTerminal reports whether there is somebody who can be asked.
func hasTerminal() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	return err == nil && tty.Close() == nil
}

// promptPassword asks for a password on the terminal, without showing it.
func promptPassword(ctx context.Context) (password string, err error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", withExit(exitUsage, fmt.Errorf("asking for the password: there is no terminal: %w", err), "use ~/.pgpass or PGPASSWORD")
	}
	defer func() {
		if cerr := tty.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("asking for the password: %w", cerr)
		}
	}()
	fd := int(tty.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return "", fmt.Errorf("asking for the password: %w", err)
	}
	silent := *before
	silent.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &silent); err != nil {
		return "", fmt.Errorf("asking for the password: %w", err)
	}
	restore := func() error { return unix.IoctlSetTermios(fd, unix.TCSETS, before) }
	if _, err := tty.WriteString("Password: "); err != nil {
		return "", errors.Join(err, restore())
	}
	type answer struct {
		text string
		err  error
	}
	answers := make(chan answer, 1)
	// Ends with the line, or with the process: a read of a terminal cannot
	// be given up, and a cancelled ctx ends the process.
	go func() {
		text, err := bufio.NewReader(tty).ReadString('\n')
		answers <- answer{strings.TrimRight(text, "\r\n"), err}
	}()
	var a answer
	select {
	case a = <-answers:
	case <-ctx.Done():
		a.err = ctx.Err()
	}
	_, echoErr := tty.WriteString("\n")
	if err := errors.Join(a.err, restore(), echoErr); err != nil {
		return "", fmt.Errorf("asking for the password: %w", err)
	}
	return a.text, nil
}
