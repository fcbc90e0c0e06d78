// Package pgreceivewal is the front of the program when it is called in
// pg_receivewal's place: that program's command line with its meaning, its
// messages and its help. It reads words and makes texts; it opens nothing,
// connects to nothing and ends nothing.
//
// The options are those of PostgreSQL 13 to 18 (documentation, "pg_receivewal";
// main in src/bin/pg_basebackup/pg_receivewal.c), and where these versions
// differ, 18's texts and checks count. One option is ours: --store.
//
// Every error ends the process with exit code 1, after Error.Print.
package pgreceivewal

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"time"

	"github.com/walferry/walferry/cmd/internal/getopt"
	"github.com/walferry/walferry/segment"
)

// Settings are what a command line says.
type Settings struct {
	Help    bool // print Help and exit 0; nothing else is set
	Version bool // print Version and exit 0; nothing else is set

	Directory      string        // -D; may be "", which no directory is, unless a slot action was asked for
	EndPos         segment.LSN   // -E; 0 is none, also when 0/0 was given
	NoLoop         bool          // -n
	NoSync         bool          // --no-sync, never together with Synchronous
	StatusInterval time.Duration // -s, whole seconds; 0 is no periodic feedback and no first one
	Slot           string        // -S
	HasSlot        bool          // -S was given; Slot may be "", which the server refuses
	Synchronous    bool          // --synchronous
	Verbose        bool          // -v
	Compression    Compression   // -Z

	CreateSlot  bool // --create-slot, never together with DropSlot
	DropSlot    bool // --drop-slot
	IfNotExists bool // --if-not-exists; it says something about CreateSlot only

	// The connection. "" is "not given" for all of them: libpq takes an empty
	// one for that.
	ConnString  string // -d, unchecked: see CheckConnection
	Host        string // -h
	Port        string // -p, unchecked: see CheckConnection
	User        string // -U
	NoPassword  bool   // -w; the last one of -w and -W counts
	AskPassword bool   // -W

	Store string // --store: the archive's URL; "" when there is none
}

// The options, in the order of the original's table: an ambiguous name lists
// its possibilities in it.
const (
	optHelp = iota
	optVersion
	optDirectory
	optDBName
	optEndPos
	optHost
	optPort
	optUser
	optNoLoop
	optNoPassword
	optPassword
	optStatusInterval
	optSlot
	optVerbose
	optCompress
	optCreateSlot
	optDropSlot
	optIfNotExists
	optSynchronous
	optNoSync
	optStore
)

// options are what getopt is told. -V and -? are none of them: the original
// knows these two as the first argument only.
func options() []getopt.Option {
	return []getopt.Option{
		{ID: optHelp, Long: "help"},
		{ID: optVersion, Long: "version"},
		{ID: optDirectory, Long: "directory", Short: 'D', Argument: true},
		{ID: optDBName, Long: "dbname", Short: 'd', Argument: true},
		{ID: optEndPos, Long: "endpos", Short: 'E', Argument: true},
		{ID: optHost, Long: "host", Short: 'h', Argument: true},
		{ID: optPort, Long: "port", Short: 'p', Argument: true},
		{ID: optUser, Long: "username", Short: 'U', Argument: true},
		{ID: optNoLoop, Long: "no-loop", Short: 'n'},
		{ID: optNoPassword, Long: "no-password", Short: 'w'},
		{ID: optPassword, Long: "password", Short: 'W'},
		{ID: optStatusInterval, Long: "status-interval", Short: 's', Argument: true},
		{ID: optSlot, Long: "slot", Short: 'S', Argument: true},
		{ID: optVerbose, Long: "verbose", Short: 'v'},
		{ID: optCompress, Long: "compress", Short: 'Z', Argument: true},
		{ID: optCreateSlot, Long: "create-slot"},
		{ID: optDropSlot, Long: "drop-slot"},
		{ID: optIfNotExists, Long: "if-not-exists"},
		{ID: optSynchronous, Long: "synchronous"},
		{ID: optNoSync, Long: "no-sync"},
		// Shortened it is nothing, as for the original: what was ambiguous or
		// unknown stays so, and what was an abbreviation keeps its meaning.
		{ID: optStore, Long: "store", Argument: true, Exact: true},
	}
}

// defaultStatusInterval is the original's.
const defaultStatusInterval = 10 * time.Second

// Program returns what messages call the program: the name of its file.
func Program(argv0 string) string { return filepath.Base(argv0) }

// Parse reads a command line: argv0 as it was typed, and args without it.
// lookup finds a variable of the environment, as os.LookupEnv does; only
// POSIXLY_CORRECT is asked for. The only error is *Error.
//
// What is wrong is found in the original's order: getopt's complaints and the
// values of -s and -E word by word, then everything that takes the whole line
// (Settings.check), then the compression. Opening the directory comes next,
// and is not done here: see DirectoryError.
func Parse(argv0 string, args []string, lookup func(name string) (string, bool)) (Settings, error) {
	if len(args) > 0 {
		switch args[0] {
		case "--help", "-?":
			return Settings{Help: true}, nil
		case "--version", "-V":
			return Settings{Version: true}, nil
		}
	}
	_, posix := lookup("POSIXLY_CORRECT")
	rules := getopt.Rules{Program: argv0, Options: options(), Posix: posix}
	given, words, parseErr := rules.Parse(args)

	p := parser{Settings: Settings{StatusInterval: defaultStatusInterval}, hint: tryHelp(Program(argv0))}
	for _, g := range given {
		if err := p.take(g); err != nil {
			return Settings{}, err
		}
	}
	var complaint *getopt.Error
	if errors.As(parseErr, &complaint) {
		return Settings{}, &Error{Message: complaint.Error(), Hint: p.hint, Raw: true}
	}
	if err := p.check(words); err != nil {
		return Settings{}, err
	}
	var err error
	if p.Compression, err = ParseCompression(p.compress); err != nil {
		return Settings{}, err
	}
	return p.Settings, nil
}

// parser gathers the settings of one line.
type parser struct {
	Settings
	hint      string // of wrong usage
	compress  string // what the last -Z said
	directory bool   // -D was given
}

// take takes one option.
func (p *parser) take(g getopt.Given) error {
	switch g.ID {
	case optHelp, optVersion:
		// Behind other arguments the original does not print what was asked
		// for, nor what is wrong.
		return &Error{Hint: p.hint}
	case optDirectory:
		p.Directory, p.directory = g.Value, true
	case optDBName:
		p.ConnString = g.Value
	case optEndPos:
		var ok bool
		if p.EndPos, ok = scanLSN(g.Value); !ok {
			return fatal(`could not parse end position "%s"`, g.Value)
		}
	case optHost:
		p.Host = g.Value
	case optPort:
		p.Port = g.Value
	case optUser:
		p.User = g.Value
	case optNoLoop:
		p.NoLoop = true
	case optNoPassword:
		p.NoPassword, p.AskPassword = true, false
	case optPassword:
		p.NoPassword, p.AskPassword = false, true
	case optStatusInterval:
		return p.statusInterval(g.Value)
	case optSlot:
		p.Slot, p.HasSlot = g.Value, true
	case optVerbose:
		p.Verbose = true
	case optCompress:
		p.compress = g.Value
	case optCreateSlot:
		p.CreateSlot = true
	case optDropSlot:
		p.DropSlot = true
	case optIfNotExists:
		p.IfNotExists = true
	case optSynchronous:
		p.Synchronous = true
	case optNoSync:
		p.NoSync = true
	case optStore:
		if g.Value == "" {
			return &Error{Message: `invalid value "" for option --store`, Hint: "Name the archive by its URL, as in s3://bucket/prefix or file:///directory."}
		}
		p.Store = g.Value
	}
	return nil
}

// maxStatusInterval is INT_MAX milliseconds, in seconds.
const maxStatusInterval = math.MaxInt32 / 1000

func (p *parser) statusInterval(text string) error {
	n, ok := integer(text)
	switch {
	case !ok:
		return fatal(`invalid value "%s" for option -s/--status-interval`, text)
	case n < 0 || n > maxStatusInterval:
		return fatal("-s/--status-interval must be in range 0..%d", maxStatusInterval)
	}
	p.StatusInterval = time.Duration(n) * time.Second
	return nil
}

// check looks at the line as a whole, in the original's order.
func (p *parser) check(words []string) error {
	action := ""
	switch {
	case p.DropSlot:
		action = "--drop-slot"
	case p.CreateSlot:
		action = "--create-slot"
	}
	wrong := ""
	switch {
	case len(words) > 0:
		wrong = fmt.Sprintf(`too many command-line arguments (first is "%s")`, words[0])
	case p.DropSlot && p.CreateSlot:
		wrong = "cannot use --create-slot together with --drop-slot"
	case action != "" && !p.HasSlot:
		wrong = action + " needs a slot to be specified using --slot"
	case p.Synchronous && p.NoSync:
		wrong = "cannot use --synchronous together with --no-sync"
	case action == "" && !p.directory:
		wrong = "no target directory specified"
	default:
		return nil
	}
	return &Error{Message: wrong, Hint: p.hint}
}
