package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"gopkg.in/yaml.v3"
)

// readFile takes the settings of a YAML file: one mapping of names to single
// values. origin is what named the file.
func (s *Set) readFile(path string, origin Origin) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading the settings file of %s: %w", origin.Describe(path), withoutPath(err))
	}
	known := make([]string, 0, len(s.specs))
	for _, spec := range s.specs {
		known = append(known, spec.Name)
	}
	nodes, err := mapping(path, content)
	if err != nil {
		return err
	}
	secret := false
	seen := map[string]int{}
	for i := 0; i+1 < len(nodes); i += 2 {
		key, value := nodes[i], nodes[i+1]
		at := Origin{Source: File, Name: key.Value, Path: path, Line: key.Line}
		spec, ok := s.spec(key.Value)
		switch {
		case !ok:
			return fmt.Errorf("%s: unknown setting %q%s", at, key.Value, didYouMean(key.Value, known, "%q"))
		case seen[key.Value] != 0:
			return fmt.Errorf("%s: %s is set twice, first in line %d", at, key.Value, seen[key.Value])
		case value.Kind != yaml.ScalarNode || value.Tag == "!!null":
			return fmt.Errorf("%s: %s: want a single value", at, key.Value)
		}
		seen[key.Value] = key.Line
		if err := s.take(spec, value.Value, at); err != nil {
			return err
		}
		secret = secret || spec.shown(value.Value) != value.Value
	}
	if secret {
		s.warnIfReadable(path)
	}
	return nil
}

// mapping returns the keys and values of the only mapping in a YAML text, in turn.
func mapping(path string, content []byte) ([]*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(content))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil // nothing but comments
		}
		return nil, yamlError(path, err)
	}
	if err := dec.Decode(new(yaml.Node)); err == nil {
		return nil, fmt.Errorf("%s: want one YAML document, there are more", path)
	} else if !errors.Is(err, io.EOF) {
		return nil, yamlError(path, err)
	}
	root := doc.Content[0]
	if root.Tag == "!!null" {
		return nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s:%d: want lines of the form \"name: value\"", path, root.Line)
	}
	return root.Content, nil
}

// yamlError turns "yaml: line 3: …" into "path:3: …". The library's message
// may quote the text it stumbled over only for aliases and directives, not
// for values.
func yamlError(path string, err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if line, what, ok := strings.Cut(rest, ": "); ok {
			return fmt.Errorf("%s:%s: this is not YAML: %s", path, line, what)
		}
	}
	return fmt.Errorf("%s: this is not YAML: %s", path, text)
}

// warnIfReadable warns of a file with a secret that others may read.
func (s *Set) warnIfReadable(path string) {
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&0o044 != 0 {
		s.warnings = append(s.warnings, fmt.Sprintf("%s holds a password and can be read by others (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path))
	}
}

// withoutPath takes operation and name off an error of package os: the
// caller names the file in its own words.
func withoutPath(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// writable reports whether this process may make files in dir.
func writable(dir string) bool {
	return unix.Access(filepath.Clean(dir), unix.W_OK|unix.X_OK) == nil
}

// Line returns a line of a settings file that sets name to value.
func Line(name, value string) (string, error) {
	b, err := yaml.Marshal(map[string]string{name: value})
	return string(b), err
}
