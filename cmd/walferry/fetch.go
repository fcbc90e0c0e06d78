package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/walferry/walferry/archive"
	"github.com/walferry/walferry/cmd/internal/settings"
	"github.com/walferry/walferry/restore"
)

// fetchCommand describes fetch for the help text. Its arguments are read by
// runFetch, before the command-line library is asked: see fetchArguments.
func fetchCommand() *cli.Command {
	return &cli.Command{
		Name: "fetch", ArgsUsage: "%f %p", Usage: "give one WAL file to PostgreSQL: the restore_command",
		Flags: append(settingFlags("budget", "stop-at-gap", "sealed-only", "store"), generalFlags()...),
	}
}

// runFetch is "walferry fetch". args are the arguments without the word
// fetch. It returns the exit code, which is never that of wrong usage: every
// error is told in one line, and what it means to the server is decided by
// the mode in which that recovers (restore.Place.ExitCode).
func runFetch(p *program, args []string) int {
	// A server log that nobody reads any more is no reason to die, least of
	// all by a signal, which takes a standby down.
	signal.Ignore(syscall.SIGPIPE)
	level := &slog.LevelVar{} // info
	log := slog.New(&fetchHandler{w: p.stderr, level: level})

	line, err := readFetch(args)
	if err == nil && line == nil {
		if err := printHelp(p.stdout, commandTable(p), []*cli.Command{fetchCommand()}); err != nil {
			return 255
		}
		return 0 // there are no arguments: no server is asking for a file
	}
	cwd, wdErr := os.Getwd()
	if wdErr != nil {
		cwd = "."
	}
	place := restore.FindPlace(cwd, fetchTarget(line, args))
	if err == nil {
		err = p.fetch(place, line, log, level)
	}
	switch {
	case errors.Is(err, restore.ErrAbsent):
		log.Debug(err.Error())
	case err != nil:
		log.Error(err.Error() + fetchHint(err))
	}
	return place.ExitCode(fetchName(line, args), err)
}

// fetchHint says how to mend what needs a person.
func fetchHint(err error) string {
	switch {
	case errors.Is(err, archive.ErrUnrecognised):
		return " (check the store's prefix)"
	case errors.Is(err, restore.ErrHole):
		return " (to end the recovery there on purpose, set a recovery target or --stop-at-gap)"
	}
	return ""
}

// readFetch reads the arguments. A nil line without an error asks for help:
// only where nothing else is said, because 0 tells the server that the file
// is there.
func readFetch(args []string) (*line, error) {
	if len(args) == 1 && (args[0] == "-h" || args[0] == "-?" || args[0] == "--help" || args[0] == "help") {
		return nil, nil
	}
	l, err := readLine([]*cli.Command{fetchCommand()}, append([]string{"fetch"}, args...))
	switch {
	case err != nil:
		return nil, err
	case l.help, l.version:
		return nil, errors.New("--help and --version stand alone; restore_command calls walferry fetch %f %p")
	}
	return l, nil
}

// fetchTarget returns %p. Of arguments that are wrong, whatever looks like it:
// the mode of the server must be known even then.
func fetchTarget(l *line, args []string) string {
	if l != nil {
		return l.words[1]
	}
	for _, arg := range args {
		if filepath.IsAbs(arg) && strings.Contains(arg, "/pg_wal/") {
			return arg
		}
	}
	return ""
}

// fetchName returns %f. Of arguments that are wrong, a history file's name: a
// server that ends its recovery may be able to do without it.
func fetchName(l *line, args []string) string {
	if l != nil {
		return l.words[0]
	}
	for _, arg := range args {
		if strings.HasSuffix(arg, ".history") {
			return arg
		}
	}
	return ""
}

// fetch finds the settings, level among them, and fetches the file. It dies by
// the signals that end a process.
func (p *program) fetch(place restore.Place, l *line, log *slog.Logger, level *slog.LevelVar) error {
	var config string
	var flags []settings.Given
	for _, g := range l.flags {
		if name := g.flag.Names()[0]; name == "config" {
			config = g.value
		} else {
			flags = append(flags, settings.Given{Name: name, Value: g.value})
		}
	}
	set, err := p.load(config, flags)
	if err != nil {
		return &restore.SettingError{Err: err}
	}
	if set.Bool("verbose") {
		level.Set(slog.LevelDebug)
	}
	for _, w := range set.Warnings() {
		log.Warn(w)
	}
	budget := set.Duration("budget")
	if v := set.Value("budget"); v.IsSet() && budget == 0 {
		return &restore.SettingError{Err: fmt.Errorf("invalid %s: want more than 0", v.Describe())}
	}
	where, err := p.findStore(set, false)
	if err != nil {
		return &restore.SettingError{Err: err}
	}
	f := restore.NewFetcher(restore.Options{
		Open: func(ctx context.Context) (restore.Archive, error) {
			store, err := where.open(ctx)
			if err != nil {
				return nil, fetchStoreError(err)
			}
			return archive.New(store, archive.Options{Log: log}), nil
		},
		Place:      place,
		Budget:     budget,
		StopAtGap:  set.Bool("stop-at-gap"),
		SealedOnly: set.Bool("sealed-only"),
		Log:        log,
	})
	stop := dieBySignal(f.Discard)
	defer stop()
	return f.Fetch(context.Background(), l.words[0], l.words[1])
}

// fetchStoreError tells a wrong setting from a store that may come back, and
// puts the hint into the line.
func fetchStoreError(err error) error {
	var e *exitError
	if !errors.As(err, &e) {
		return err
	}
	if e.hint != "" {
		err = fmt.Errorf("%w (%s)", err, e.hint)
	}
	if e.code == exitUsage {
		return &restore.SettingError{Err: err}
	}
	return err
}

// dieBySignal lets the process die by the signals that would end it anyway,
// after discard. PostgreSQL sends SIGTERM to the group of a restore_command
// when it stops, and knows a command that died by it from one that failed.
// stop gives the signals back.
func dieBySignal(discard func()) (stop func()) {
	signals := make(chan os.Signal, 1)
	for _, s := range []os.Signal{syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGINT, syscall.SIGHUP} {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case s := <-signals:
			discard()
			die(s)
		case <-quit:
		}
	}()
	return func() {
		signal.Stop(signals)
		close(quit)
		<-done
	}
}

// die ends the process by a signal. It does not return.
func die(s os.Signal) {
	number, ok := s.(syscall.Signal)
	if !ok || number == syscall.SIGQUIT {
		// Go's way to die by SIGQUIT is a dump of all stacks and exit code 2.
		// The server that sent it (an immediate shutdown) is gone already.
		number = syscall.SIGKILL
	}
	signal.Reset(number)
	if err := syscall.Kill(os.Getpid(), number); err == nil {
		// It may take a moment to come by.
		<-time.After(time.Second)
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // cannot fail: it is we
	select {}
}

// fetchHandler is a slog.Handler that writes one line a record, as it stands
// in the server's log: "walferry fetch: text name=value".
type fetchHandler struct {
	w     io.Writer // an *os.File: a line is one write
	level slog.Leveler
	attrs string
}

func (h *fetchHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *fetchHandler) Handle(_ context.Context, r slog.Record) error {
	text := "walferry fetch: " + oneLine(r.Message) + h.attrs
	r.Attrs(func(a slog.Attr) bool {
		text += formatAttr("", a)
		return true
	})
	_, err := io.WriteString(h.w, text+"\n")
	return err
}

func (h *fetchHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	for _, a := range attrs {
		with.attrs += formatAttr("", a)
	}
	return &with
}

func (h *fetchHandler) WithGroup(string) slog.Handler { return h }
