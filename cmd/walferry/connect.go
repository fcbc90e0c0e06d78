package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/walferry/walferry/cmd/internal/settings"
	"github.com/walferry/walferry/replication"
)

// connection reads the connection settings of a command that somebody waits
// for: as PostgreSQL's programs do, it asks at the terminal for a password that
// the server wants and nobody has given. What the settings name is checked;
// nothing is connected yet. application is the application_name where they give
// none.
func (c *call) connection(application string) (*replication.Config, error) {
	return c.connectionSettings(application, true)
}

// daemonConnection is connection for what runs for ever. Only --password lets
// it ask, at its start: nobody may be there when a server begins to want one.
func (c *call) daemonConnection() (*replication.Config, error) {
	return c.connectionSettings(defaultApplication, false)
}

// defaultApplication is the application_name where nobody gives one.
const defaultApplication = "walferry"

func (c *call) connectionSettings(application string, askLate bool) (*replication.Config, error) {
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
	askNow := c.flags.Bool("password")
	if askNow && params.NoPassword {
		return nil, usageError("--password and --no-password (%s) exclude each other", c.set.Value("no-password").Origin)
	}
	if askNow || askLate {
		askForPassword(&params, askNow)
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

// askForPassword lets the password be asked for at the terminal: at once, or
// when a server wants one and there is a terminal. --no-password forbids it.
func askForPassword(p *replication.Params, atOnce bool) {
	if atOnce || hasTerminal() {
		p.Password, p.PasswordLate = promptPassword, !atOnce
	}
}

// hasTerminal reports whether there is somebody who can be asked.
func hasTerminal() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	return err == nil && tty.Close() == nil
}

// promptPassword asks for a password on the terminal, without showing it. The
// end of the terminal's input is an empty answer, as libpq's programs have it
// (simple_prompt in src/common/sprompt.c).
func promptPassword(ctx context.Context) (password string, err error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", withExit(exitUsage, fmt.Errorf("there is no terminal: %w", err), "use ~/.pgpass or PGPASSWORD")
	}
	defer func() {
		if cerr := tty.Close(); err == nil {
			err = cerr
		}
	}()
	fd := int(tty.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return "", err
	}
	silent := *before
	silent.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &silent); err != nil {
		return "", err
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
		if errors.Is(err, io.EOF) {
			err = nil
		}
		answers <- answer{strings.TrimRight(text, "\r\n"), err}
	}()
	var a answer
	select {
	case a = <-answers:
	case <-ctx.Done():
		a.err = errInterrupted
	}
	_, echoErr := tty.WriteString("\n")
	if err := errors.Join(a.err, restore(), echoErr); err != nil {
		return "", err
	}
	return a.text, nil
}
