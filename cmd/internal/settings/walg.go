package settings

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// WALGFileName is the name of WAL-G's settings file in a home directory.
const WALGFileName = ".walg.json"

// readWALG takes ~/.walg.json, where WAL-G keeps what it else reads from
// variables: one JSON object, the variables' names as keys. A file that is
// not there is no error.
func (s *Set) readWALG(home string) error {
	if home == "" {
		return nil
	}
	path := filepath.Join(home, WALGFileName)
	content, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		// Another user's home (sudo -E) is not ours to complain about.
		return nil
	case err != nil:
		return fmt.Errorf("reading WAL-G's settings in %s: %w", path, withoutPath(err))
	}
	var values map[string]any
	if err := json.Unmarshal(content, &values); err != nil {
		return fmt.Errorf("reading WAL-G's settings in %s: want one JSON object: %w", path, jsonPlace(content, err))
	}
	for name, value := range values {
		var text string
		switch v := value.(type) {
		case nil:
		case string:
			text = v
		case bool, float64:
			raw, err := json.Marshal(v) // 5432, not 5.432e+03
			if err != nil {
				return fmt.Errorf("reading WAL-G's settings in %s: %s: %w", path, name, err)
			}
			text = string(raw)
		default:
			continue // nested settings of WAL-G's that concern nobody here
		}
		if text == "" {
			continue
		}
		name = strings.ToUpper(name) // WAL-G takes either case
		s.variables[name] = Value{Text: text, Origin: Origin{Source: WALGFile, Name: name, Path: path}, shown: showVariable(name, text)}
	}
	return nil
}

// jsonPlace adds the line to an error of package json, and leaves out what
// it may quote of the content.
func jsonPlace(content []byte, err error) error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("line %d: %w", 1+strings.Count(string(content[:min(max(int(syntax.Offset)-1, 0), len(content))]), "\n"), syntax)
	}
	return errors.New("it is something else")
}

// ForLibraries returns those values of ~/.walg.json that the AWS and libpq
// libraries read from the environment and that are not there: WAL-G puts
// them there, so that a host which works with WAL-G works unchanged. Keys
// are taken as a whole: an ID from one place never meets a secret from the other.
func (s *Set) ForLibraries() map[string]string {
	set := map[string]string{}
	_, ownID := s.fromEnvironment("AWS_ACCESS_KEY_ID")
	_, ownSecret := s.fromEnvironment("AWS_SECRET_ACCESS_KEY")
	for name, v := range s.variables {
		if v.Origin.Source != WALGFile {
			continue
		}
		switch name {
		case "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN":
			if !ownID && !ownSecret {
				set[name] = v.Text
			}
		case "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_CA_BUNDLE",
			"AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE",
			"PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGDATABASE", "PGSERVICE", "PGSERVICEFILE", "PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY", "PGCONNECT_TIMEOUT":
			set[name] = v.Text
		}
	}
	return set
}

func (s *Set) fromEnvironment(name string) (Value, bool) {
	v, ok := s.variables[name]
	return v, ok && v.Origin.Source == Environment
}

// showVariable hides the value of a variable whose name speaks of a secret.
func showVariable(name, value string) string {
	for _, word := range []string{"SECRET", "PASSWORD", "TOKEN", "ACCESS_KEY", "PASSPHRASE", "LIBSODIUM_KEY", "PGP_KEY", "CREDENTIALS_JSON"} {
		if strings.Contains(name, word) && !strings.HasSuffix(name, "_FILE") && !strings.HasSuffix(name, "_PATH") {
			return Masked
		}
	}
	if slices.Contains([]string{"WALG_S3_PREFIX", "WALE_S3_PREFIX", "WALFERRY_STORE", "AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"}, name) {
		return MaskURL(value)
	}
	if name == "WALFERRY_DSN" {
		return MaskDSN(value)
	}
	return value
}
