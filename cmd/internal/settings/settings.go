// Package settings finds the value of every setting and remembers where it
// came from, so that each error can say which flag, variable or line of a file
// is to be mended.
//
// Sources, the strongest first:
//
//  1. flags;
//  2. variables: --spool-limit is WALFERRY_SPOOL_LIMIT;
//  3. a YAML file (--config or WALFERRY_CONFIG), one level, the flags' names;
//  4. WAL-G's and the AWS tools' variables, and WAL-G's own file ~/.walg.json
//     (Set.Variable: what they mean is decided by whoever asks for them).
//
// Everything that is set is checked, also what a stronger source overrides:
// a typing error in the file must not wait for the day on which the flag is
// taken away. Names that nobody knows are refused with the nearest right one.
//
// The package reads files and takes the environment as a value; it never
// prints, and never puts the value of a secret in an error. A Set does not
// change after Load and is safe for concurrent use.
package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/walferry/walferry/cmd/internal/nearest"
)

// VariablePrefix begins the variables that belong to this program. Every one
// of them must be known.
const VariablePrefix = "WALFERRY_"

// ConfigVariable names the settings file, as --config does.
const ConfigVariable = VariablePrefix + "CONFIG"

// Spec describes a setting.
type Spec struct {
	Name    string // the flag's long name without dashes, and the key in the file
	Default string // the value when nothing sets it; "" is none
	Bool    bool   // on or off: the flag needs no value

	// Check returns an error when a value is not possible: only what would
	// be right ("want a size such as 32MB"), not the value. nil takes any.
	Check func(value string) error

	// Mask returns what may be shown of a value; nil: all of it.
	Mask func(value string) string
}

// Variable returns the name of the variable that sets it.
func (s Spec) Variable() string {
	return VariablePrefix + strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
}

func (s Spec) shown(value string) string {
	if s.Mask == nil {
		return value
	}
	return s.Mask(value)
}

func (s Spec) check(value string) error {
	if s.Bool {
		_, err := parseBool(value)
		return err
	}
	if s.Check == nil {
		return nil
	}
	return s.Check(value)
}

// Source is a kind of place that a value can come from.
type Source int

// The sources; a larger one is stronger.
const (
	Default Source = iota
	WALGFile
	File
	Environment
	Flag
)

// Origin is where a value came from.
type Origin struct {
	Source Source
	Name   string // the variable, or the key in a file; for a flag its name without dashes
	Path   string // the file
	Line   int    // the line in it, from 1
}

// String names the origin for a table: "flag", "WALFERRY_HOLD", "walferry.yaml:3".
func (o Origin) String() string {
	switch o.Source {
	case Flag:
		return "flag --" + o.Name
	case Environment:
		return "environment " + o.Name
	case File:
		return fmt.Sprintf("%s:%d", o.Path, o.Line)
	case WALGFile:
		return o.Path + " " + o.Name
	}
	return "default"
}

// Describe names a value with its origin, for an error: "--hold=12x (flag)",
// "WALFERRY_HOLD=12x (environment)", "hold: 12x (walferry.yaml:3)". The
// value must be one that may be shown.
func (o Origin) Describe(value string) string {
	switch o.Source {
	case Flag:
		return fmt.Sprintf("--%s=%s (flag)", o.Name, value)
	case Environment:
		return fmt.Sprintf("%s=%s (environment)", o.Name, value)
	case File:
		return fmt.Sprintf("%s: %s (%s:%d)", o.Name, value, o.Path, o.Line)
	case WALGFile:
		return fmt.Sprintf("%s: %s (%s)", o.Name, value, o.Path)
	}
	return fmt.Sprintf("%s=%s (default)", o.Name, value)
}

// Value is a setting's value and its origin.
type Value struct {
	Text   string
	Origin Origin
	shown  string
}

// Shown is what may be printed of it.
func (v Value) Shown() string { return v.shown }

// Describe names the value with its origin, without secrets.
func (v Value) Describe() string { return v.Origin.Describe(v.shown) }

// IsSet reports whether something other than the default says it.
func (v Value) IsSet() bool { return v.Origin.Source != Default }

// Given is a flag as it stands on the command line.
type Given struct {
	Name  string // a Spec's name
	Value string
}

// Input is everything that Load looks at.
type Input struct {
	Flags    []Given  // in order; the last one of a name counts
	Config   string   // the file that --config names; "" is none
	Environ  []string // "NAME=value", as os.Environ gives it
	HomeDir  string   // where .walg.json may lie; "" is nowhere
	Reserved []string // WALFERRY_ variables that are no settings; one that ends in "_" stands for all that begin so
}

// Set is the outcome of Load.
type Set struct {
	specs     []Spec
	values    map[string]Value
	variables map[string]Value // of the environment and ~/.walg.json; empty ones left out
	warnings  []string
}

// Load finds every value. An error is a wrong setting: one line that says
// what is wrong, where it came from and what would be right.
func Load(specs []Spec, in Input) (*Set, error) {
	s := &Set{specs: specs, values: map[string]Value{}, variables: map[string]Value{}}
	for _, spec := range specs {
		s.values[spec.Name] = Value{Text: spec.Default, Origin: Origin{Name: spec.Name}, shown: spec.shown(spec.Default)}
	}
	if err := s.readWALG(in.HomeDir); err != nil {
		return nil, err
	}
	s.readEnviron(in.Environ)

	config, origin := in.Config, Origin{Source: Flag, Name: "config"}
	if v, ok := s.variables[ConfigVariable]; ok && config == "" {
		config, origin = v.Text, v.Origin
	}
	if config != "" {
		if err := s.readFile(config, origin); err != nil {
			return nil, err
		}
	}
	if err := s.takeVariables(in.Reserved); err != nil {
		return nil, err
	}
	for _, g := range in.Flags {
		spec, ok := s.spec(g.Name)
		if !ok {
			return nil, fmt.Errorf("--%s is not a setting", g.Name)
		}
		if err := s.take(spec, g.Value, Origin{Source: Flag, Name: g.Name}); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Set) spec(name string) (Spec, bool) {
	for _, spec := range s.specs {
		if spec.Name == name {
			return spec, true
		}
	}
	return Spec{}, false
}

// take checks a value and puts it over a weaker one.
func (s *Set) take(spec Spec, value string, origin Origin) error {
	v := Value{Text: value, Origin: origin, shown: spec.shown(value)}
	if err := spec.check(value); err != nil {
		return fmt.Errorf("invalid %s: %w", v.Describe(), err)
	}
	if origin.Source >= s.values[spec.Name].Origin.Source {
		s.values[spec.Name] = v
	}
	return nil
}

// readEnviron keeps the variables that are not empty: an empty one is how
// compose files and units spell "not set".
func (s *Set) readEnviron(environ []string) {
	for _, e := range environ {
		name, value, ok := strings.Cut(e, "=")
		if ok && value != "" {
			s.variables[name] = Value{Text: value, Origin: Origin{Source: Environment, Name: name}, shown: showVariable(name, value)}
		}
	}
}

// takeVariables takes the WALFERRY_ variables.
func (s *Set) takeVariables(reserved []string) error {
	bySpec := map[string]Spec{}
	var known []string
	for _, spec := range s.specs {
		bySpec[spec.Variable()] = spec
		known = append(known, spec.Variable())
	}
	for _, r := range reserved {
		if !strings.HasSuffix(r, "_") {
			known = append(known, r)
		}
	}
	known = append(known, ConfigVariable)
	for _, name := range sortedKeys(s.variables) {
		v := s.variables[name]
		if !strings.HasPrefix(name, VariablePrefix) || v.Origin.Source != Environment {
			continue
		}
		spec, ok := bySpec[name]
		if !ok {
			if name == ConfigVariable || isReserved(name, reserved) {
				continue
			}
			return fmt.Errorf("unknown variable %s (environment)%s", name, didYouMean(name, known, "%s"))
		}
		if err := s.take(spec, v.Text, v.Origin); err != nil {
			return err
		}
	}
	return nil
}

func isReserved(name string, reserved []string) bool {
	return slices.ContainsFunc(reserved, func(r string) bool {
		return name == r || strings.HasSuffix(r, "_") && strings.HasPrefix(name, r)
	})
}

// didYouMean is the end of an error about a word that nobody knows.
func didYouMean(word string, known []string, form string) string {
	if near, ok := nearest.Word(word, known); ok {
		return ": did you mean " + fmt.Sprintf(form, near) + "?"
	}
	return ""
}

// All returns every setting in the order of the specs, as (name, value).
func (s *Set) All(yield func(name string, v Value) bool) {
	for _, spec := range s.specs {
		if !yield(spec.Name, s.values[spec.Name]) {
			return
		}
	}
}

// Value returns a setting's value; of a name that no Spec has, the zero Value.
func (s *Set) Value(name string) Value { return s.values[name] }

// Text returns a setting's text.
func (s *Set) Text(name string) string { return s.values[name].Text }

// Bool returns a setting that is on or off; one that is not set is off.
func (s *Set) Bool(name string) bool {
	on, err := parseBool(s.Text(name))
	return err == nil && on
}

// Bytes returns a setting whose Check is CheckSize; one that is not set is 0.
func (s *Set) Bytes(name string) int64 {
	n, err := ParseSize(s.Text(name))
	if err != nil {
		return 0
	}
	return n
}

// Duration returns a setting whose Check is CheckDuration; one that is not
// set is 0.
func (s *Set) Duration(name string) time.Duration {
	d, err := ParseDuration(s.Text(name))
	if err != nil {
		return 0
	}
	return d
}

// Variable returns a variable that is not this program's own: of the
// environment, else of ~/.walg.json. ok is false when it is empty or not set.
func (s *Set) Variable(name string) (Value, bool) {
	v, ok := s.variables[name]
	return v, ok
}

// Variables returns the names of all variables that Variable knows, sorted.
func (s *Set) Variables() []string { return sortedKeys(s.variables) }

// Warnings returns what is not wrong but should be known: one line each.
func (s *Set) Warnings() []string { return slices.Clone(s.warnings) }

func parseBool(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "true", "on", "yes", "1":
		return true, nil
	case "false", "off", "no", "0", "":
		return false, nil
	}
	return false, errors.New("want true or false")
}

func sortedKeys(m map[string]Value) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// HomeDir returns $WALFERRY_HOME, where the spool and the default archive
// lie; without it /var/lib/walferry if it can be written or made there, else
// .local/share/walferry in the user's home directory.
func (s *Set) HomeDir(userHome string) (string, error) {
	if v, ok := s.Variable(VariablePrefix + "HOME"); ok {
		if !filepath.IsAbs(v.Text) {
			return "", fmt.Errorf("invalid %s: want an absolute path", v.Describe())
		}
		return filepath.Clean(v.Text), nil
	}
	const system = "/var/lib/walferry"
	if writable(system) {
		return system, nil
	}
	if _, err := os.Stat(system); errors.Is(err, fs.ErrNotExist) && writable(filepath.Dir(system)) {
		return system, nil
	}
	if userHome == "" {
		return "", errors.New("no place for the spool and the archive: " + system + " cannot be written and there is no home directory; set " + VariablePrefix + "HOME")
	}
	return filepath.Join(userHome, ".local", "share", "walferry"), nil
}
