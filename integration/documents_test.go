package integration

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documents are the pages whose words are held against the code.
func documents(t *testing.T) map[string]string {
	t.Helper()
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, p := range append(pages, "../README.md", "../CHANGELOG.md") {
		content, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		texts[p] = string(content)
	}
	return texts
}

// sources returns the text of all Go files: tests, or all others.
func sources(t *testing.T, tests bool) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") != tests {
			return err
		}
		content, err := os.ReadFile(path)
		all.Write(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// Every link within the documents leads to a file, and to a heading in it.
func TestDocumentLinks(t *testing.T) {
	texts := documents(t)
	link := regexp.MustCompile(`\]\(([^)\s]*)\)`)
	heading := regexp.MustCompile(`(?m)^#+ (.*)$`)
	for page, text := range texts {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			target := page
			if file != "" {
				target = filepath.Join(filepath.Dir(page), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %s: %v", page, m[1], err)
			}
			var anchors []string
			for _, h := range heading.FindAllStringSubmatch(texts[target], -1) {
				// As GitHub makes them: lower case, blanks to hyphens, nothing else.
				a := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(h[1]), "")
				anchors = append(anchors, strings.ReplaceAll(a, " ", "-"))
			}
			if anchor != "" && !slices.Contains(anchors, anchor) {
				t.Errorf("%s: there is no heading for %s", page, m[1])
			}
		}
	}
}

// Every test that the crash table names exists.
func TestDocumentedTests(t *testing.T) {
	tests := sources(t, true)
	names := regexp.MustCompile("`(Test[A-Z][A-Za-z]*)`").FindAllStringSubmatch(documents(t)["../README.md"], -1)
	if len(names) < 15 {
		t.Errorf("the README names %d tests", len(names))
	}
	for _, m := range names {
		if !strings.Contains(tests, "func "+m[1]+"(t *testing.T)") {
			t.Errorf("the README names %s, which does not exist", m[1])
		}
	}
}

// othersWords are messages in the runbooks that are PostgreSQL's, the kernel's
// or the Go library's.
var othersWords = []string{
	"password authentication failed", "no pg_hba.conf entry for replication connection",
	"must be superuser or replication role to start walsender", "permission denied to start WAL sender",
	"number of requested standby connections exceeds max_wal_senders", "all replication slots are in use",
	"the database system is starting up", "replication slot … is active for PID",
	"connection refused", "no such host", "wal_level = minimal",
	"the standby was promoted during online backup", "recovery ended before configured recovery target was reached",
}

// Every message in the runbooks is one that the program has.
func TestDocumentedMessages(t *testing.T) {
	code := sources(t, false)
	phrases := regexp.MustCompile("`([a-z][^`\n]* [^`\n]*)`").FindAllStringSubmatch(documents(t)["../docs/runbooks.md"], -1)
	found := 0
	for _, m := range phrases {
		if slices.Contains(othersWords, m[1]) || strings.HasPrefix(m[1], "walferry ") {
			continue
		}
		for part := range strings.SplitSeq(m[1], "…") {
			part = strings.Trim(part, " ()")
			// Put together by package patience, and by package s3.
			if what, ok := strings.CutSuffix(part, "; trying again until it works"); ok {
				part = strings.TrimPrefix(what, "cannot ")
			}
			part = strings.TrimPrefix(part, "can ")
			part = strings.TrimSuffix(part, " again")
			for word := range strings.SplitSeq(part, ": ") {
				found++
				if len(strings.Fields(word)) > 1 && !strings.Contains(code, word) {
					t.Errorf("docs/runbooks.md: %q: the program never says %q", m[1], word)
				}
			}
		}
	}
	if found < 30 {
		t.Errorf("%d messages were found", found)
	}
}

// Every flag that a command has is in the README, and none else.
func TestDocumentedFlags(t *testing.T) {
	if theLab.missing != "" {
		t.Skip("NOT TESTED: " + theLab.missing)
	}
	binary, err := theLab.binary()
	if err != nil {
		t.Fatal(err)
	}
	readme := documents(t)["../README.md"]
	commands, _, ok := strings.Cut(readme[strings.Index(readme, "\n## Commands\n")+1:], "\n## Settings\n")
	if !ok {
		t.Fatal("the README has no section Commands, or no Settings behind it")
	}
	// A flag by its long name, or a letter alone: "`-d`".
	flag := regexp.MustCompile("--[a-z][a-z-]+[a-z]")
	documented := flag.FindAllString(commands, -1)
	var known []string
	for _, topic := range []string{"receive", "fetch", "status", "slot create", "slot drop", "slot list",
		"backup create", "backup list", "backup show", "backup delete", "restore", "config print", "demo"} {
		p := start(t, nil, binary, append([]string{"help"}, strings.Fields(topic)...)...)
		p.exits(0)
		for _, name := range flag.FindAllString(p.stdout.String(), -1) {
			known = append(known, name)
			if !slices.Contains(documented, name) {
				t.Errorf("%s of %s is not in the README", name, topic)
			}
		}
	}
	for _, name := range documented {
		if !slices.Contains(known, name) && name != "--flag" {
			t.Errorf("the README has %s, which no command has", name)
		}
	}
}
