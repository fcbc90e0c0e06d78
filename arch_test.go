// Package walferry_test holds the rules of the house that a compiler does not
// know: who may import whom, and what only cmd may do. They are read off the
// source, so that a broken rule is a failing test with file and line.
package walferry_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/walferry/walferry"

// rule says what the packages of a folder may import beside the standard
// library and the folder itself: folders of this module, and other modules by
// the beginning of their import paths. Deeper folders without a rule of their
// own have their parent's.
type rule struct {
	folders []string
	modules []string
}

const (
	pgx       = "github.com/jackc/pgx/v5/"
	pglogrepl = "github.com/jackc/pglogrepl"
	unixCalls = "golang.org/x/sys/unix"
)

// rules are the table of the design, in the order in which a byte of WAL
// meets the folders.
var rules = map[string]rule{
	"internal/patience":    {},
	"internal/tempfile":    {modules: []string{unixCalls}},
	"segment":              {},
	"segment/waltest":      {folders: []string{"segment"}},
	"segment/disk":         {folders: []string{"internal/tempfile"}, modules: []string{unixCalls}},
	"segment/disk/crashfs": {folders: []string{"segment/disk"}},
	"segment/disk/memory":  {folders: []string{"segment/disk"}},
	// The directory of pg_receivewal, which may hold compressed files.
	"segment/disk/waldir": {folders: []string{"segment", "segment/disk"}, modules: []string{"github.com/klauspost/compress/gzip", "github.com/pierrec/lz4/v4"}},
	"segment/spool":       {folders: []string{"segment", "segment/disk"}},
	"replication":         {folders: []string{"segment"}, modules: []string{pgx, pglogrepl, "github.com/jackc/pgpassfile", "github.com/jackc/pgservicefile", unixCalls}},
	"replication/fakepg":  {folders: []string{"segment", "replication"}, modules: []string{pgx}},
	"receiver":            {folders: []string{"segment", "segment/spool", "replication", "internal/patience"}},
	// objstore for the bodies that it hands to the archive, never for a store.
	"uploader":                   {folders: []string{"segment", "segment/spool", "archive", "archive/codec", "archive/objstore", "internal/patience"}},
	"archive":                    {folders: []string{"segment", "archive/codec", "archive/objstore"}},
	"archive/codec":              {folders: []string{"internal/tempfile"}, modules: []string{"github.com/pierrec/lz4/v4", "github.com/klauspost/compress/", "github.com/andybalholm/brotli", "github.com/ulikunitz/xz"}},
	"archive/manifest":           {folders: []string{"segment"}},
	"archive/objstore":           {},
	"archive/objstore/dir":       {folders: []string{"archive/objstore"}, modules: []string{unixCalls}},
	"archive/objstore/mem":       {folders: []string{"archive/objstore"}},
	"archive/objstore/s3":        {folders: []string{"archive/objstore", "internal/patience"}, modules: []string{"github.com/aws/"}},
	"archive/objstore/storetest": {folders: []string{"archive/objstore"}},
	// segment for positions, codec and objstore for the bodies of parts.
	"basebackup":            {folders: []string{"segment", "replication", "archive", "archive/codec", "archive/manifest", "archive/objstore", "internal/patience"}},
	"restore":               {folders: []string{"segment", "archive", "archive/codec", "archive/objstore", "internal/patience"}},
	"restore/unpack":        {folders: []string{"segment", "archive", "archive/codec", "archive/manifest", "archive/objstore", "internal/patience"}, modules: []string{unixCalls}},
	"restore/recovery":      {folders: []string{"segment", "archive"}},
	"restore/instance":      {modules: []string{pgx, unixCalls}},
	"cmd/internal/settings": {folders: []string{"cmd/internal/nearest"}, modules: []string{unixCalls, "gopkg.in/yaml.v3"}},
	"cmd/internal/nearest":  {},
	"cmd/internal/getopt":   {},
	// segment for the LSN of --endpos.
	"cmd/internal/pgreceivewal": {folders: []string{"segment", "cmd/internal/getopt"}},
	"cmd":                       {folders: []string{"*"}, modules: []string{"github.com/urfave/cli/v2", pgx, unixCalls}},
	"integration":               {folders: []string{"*"}, modules: []string{"*"}},
}

// harness are packages that exist for tests, though they are not _test files:
// they may use package testing, panic, and make a context of their own.
var harness = []string{"archive/objstore/storetest", "replication/fakepg", "segment/disk/crashfs", "segment/waltest", "integration"}

// within reports whether a folder is one of those or lies below one.
func within(folder string, folders ...string) bool {
	return slices.ContainsFunc(folders, func(f string) bool {
		return folder == f || strings.HasPrefix(folder, f+"/")
	})
}

// ruleFor returns the rule of the folder or of the nearest parent with one.
func ruleFor(folder string) (rule, bool) {
	for f := folder; f != "."; f = path.Dir(f) {
		if r, ok := rules[f]; ok {
			return r, true
		}
	}
	return rule{}, false
}

// source is a Go file of this module, parsed.
type source struct {
	path   string // from the module's root, with slashes
	folder string
	file   *ast.File
	fset   *token.FileSet
}

func (s source) at(p token.Pos) string { return fmt.Sprintf("%s:%d", s.path, s.fset.Position(p).Line) }

// parse returns the Go files below root, without tests.
func parse(t *testing.T, root string) []source {
	t.Helper()
	var all []source
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if p != root && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" || name == "vendor") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		all = append(all, source{path: rel, folder: path.Dir(rel), file: f, fset: fset})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestImports(t *testing.T) {
	for _, s := range parse(t, ".") {
		for _, broken := range imports(s) {
			t.Error(broken)
		}
	}
}

// imports returns what a file imports against the rules.
func imports(s source) []string {
	var broken []string
	r, ok := ruleFor(s.folder)
	if !ok {
		return []string{fmt.Sprintf("%s: the folder %s has no import rule", s.path, s.folder)}
	}
	for _, spec := range s.file.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return []string{fmt.Sprintf("%s: %v", s.at(spec.Pos()), err)}
		}
		bad := func(why string) {
			broken = append(broken, fmt.Sprintf("%s: %s imports %s: %s", s.at(spec.Pos()), s.folder, name, why))
		}
		folder, own := strings.CutPrefix(name, module+"/")
		first, _, _ := strings.Cut(name, "/")
		switch {
		case own:
			if folder != s.folder && !slices.Contains(r.folders, folder) && !slices.Contains(r.folders, "*") {
				bad("not one of its neighbours in the design")
			}
		case strings.Contains(first, "."):
			if !slices.ContainsFunc(r.modules, func(m string) bool {
				return m == "*" || name == m || strings.HasPrefix(name, strings.TrimSuffix(m, "/")+"/")
			}) {
				bad("a module that this folder has no need of")
			}
		case name == "testing" && !within(s.folder, harness...):
			bad("tests only")
		case s.folder == "segment" && slices.Contains([]string{"os", "io/fs", "net", "time", "syscall", "path/filepath", "log/slog"}, name):
			bad("this package is pure")
		case slices.Contains([]string{"flag", "log", "os/signal"}, name) && !within(s.folder, "cmd", "integration"):
			bad("only cmd reads flags, prints and catches signals")
		case name == "C" || name == "plugin":
			bad("the program is one static file")
		}
	}
	return broken
}

// forbidden are calls that belong to cmd, by package and name.
var forbidden = map[string]map[string]string{
	"os":      {"Exit": "only cmd ends the process", "Getenv": "only cmd reads variables", "LookupEnv": "only cmd reads variables", "Environ": "only cmd reads variables", "Setenv": "only cmd sets variables"},
	"fmt":     {"Print": "only cmd prints", "Printf": "only cmd prints", "Println": "only cmd prints"},
	"context": {"Background": "take the caller's context", "TODO": "take the caller's context"},
	"time":    {"Sleep": "a sleep that ignores its context"},
	"slog":    {"Default": "take a logger", "SetDefault": "take a logger", "Info": "take a logger", "Warn": "take a logger", "Error": "take a logger", "Debug": "take a logger"},
}

func TestHouse(t *testing.T) {
	for _, s := range parse(t, ".") {
		for _, broken := range house(s) {
			t.Error(broken)
		}
	}
}

// house returns what a file does that only cmd may do, or nobody.
func house(s source) []string {
	var broken []string
	bad := func(p token.Pos, format string, args ...any) {
		broken = append(broken, s.at(p)+": "+fmt.Sprintf(format, args...))
	}
	if slices.Contains([]string{"util", "utils", "common", "helper", "helpers", "types", "misc", "base", "shared", "lib"}, path.Base(s.folder)) {
		bad(s.file.Name.Pos(), "a package called %s says nothing", path.Base(s.folder))
	}
	global := globals(s.file)
	for _, d := range s.file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			bad(f.Pos(), "no init(): say it where it is needed")
		}
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for _, left := range n.Lhs {
				if name := root(left); name != nil && n.Tok != token.DEFINE && global[name.Name] && name.Obj != nil && name.Obj.Decl != nil && isGlobal(s.file, name) {
					bad(n.Pos(), "%s is a global that changes", name.Name)
				}
			}
		case *ast.TypeSpec:
			// An unexported one may be the reader that a call returns, whose
			// life is the call's.
			st, ok := n.Type.(*ast.StructType)
			if !ok || !n.Name.IsExported() {
				return true
			}
			for _, f := range st.Fields.List {
				if isSelector(f.Type, "context", "Context") {
					bad(f.Pos(), "a context in a struct: pass it to the call that needs it")
				}
			}
		case *ast.CallExpr:
			if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "panic" && id.Obj == nil && !within(s.folder, "cmd") && !within(s.folder, harness...) {
				bad(n.Pos(), "panic: return an error")
			}
		case *ast.SelectorExpr:
			pkg, ok := n.X.(*ast.Ident)
			if !ok || pkg.Obj != nil || within(s.folder, "cmd", "integration") {
				return true
			}
			why := forbidden[pkg.Name][n.Sel.Name]
			// replication reads libpq's variables: they are libpq's, and its
			// rules about them are known there alone.
			if why == "" || pkg.Name == "context" && within(s.folder, harness...) || s.folder == "replication" && n.Sel.Name == "Getenv" {
				return true
			}
			bad(n.Pos(), "%s.%s: %s", pkg.Name, n.Sel.Name, why)
		}
		return true
	})
	return broken
}

// globals returns the names of a file's package-level variables.
func globals(f *ast.File) map[string]bool {
	names := map[string]bool{}
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.VAR {
			continue
		}
		for _, spec := range g.Specs {
			for _, name := range spec.(*ast.ValueSpec).Names {
				if name.Name != "_" {
					names[name.Name] = true
				}
			}
		}
	}
	return names
}

// isGlobal reports whether a name stands for the file's package-level
// variable of that name, not for a local one.
func isGlobal(f *ast.File, id *ast.Ident) bool {
	spec, ok := id.Obj.Decl.(*ast.ValueSpec)
	if !ok {
		return false
	}
	for _, d := range f.Decls {
		if g, ok := d.(*ast.GenDecl); ok && slices.Contains(g.Specs, ast.Spec(spec)) {
			return true
		}
	}
	return false
}

// root returns the variable that an assignment's left side changes: x of x,
// x.y and x[y].
func root(e ast.Expr) *ast.Ident {
	switch e := e.(type) {
	case *ast.Ident:
		return e
	case *ast.SelectorExpr:
		return root(e.X)
	case *ast.IndexExpr:
		return root(e.X)
	}
	return nil
}

func isSelector(e ast.Expr, pkg, name string) bool {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	id, ok := s.X.(*ast.Ident)
	return ok && id.Name == pkg && s.Sel.Name == name
}

// TestRulesBite shows each rule a file that breaks it.
func TestRulesBite(t *testing.T) {
	for _, c := range []struct{ folder, text, want string }{
		{"segment", `import "os"`, "this package is pure"},
		{"segment", `import "` + module + `/archive"`, "neighbours"},
		{"archive", `import "` + module + `/replication"`, "neighbours"},
		{"archive", `import "github.com/aws/aws-sdk-go-v2/aws"`, "no need"},
		{"receiver", `import "github.com/jackc/pglogrepl"`, "no need"},
		{"uploader", `import "testing"`, "tests only"},
		{"uploader", `import "flag"`, "only cmd reads flags"},
		{"nowhere/new", ``, "no import rule"},
		{"archive/utils", ``, "says nothing"},
		{"receiver", `func init() {}`, "no init()"},
		{"receiver", `func f() { panic("x") }`, "return an error"},
		{"receiver", "import \"os\"\nfunc f() { os.Exit(1) }", "ends the process"},
		{"receiver", "import \"os\"\nfunc f() { _ = os.Getenv(\"X\") }", "reads variables"},
		{"receiver", "import \"context\"\nfunc f() { _ = context.Background() }", "caller's context"},
		{"receiver", "import \"context\"\ntype T struct { ctx context.Context }", "context in a struct"},
		{"receiver", "import \"log/slog\"\nfunc f() { slog.Info(\"x\") }", "take a logger"},
		{"receiver", "var x int\nfunc f() { x = 1 }", "a global that changes"},
		{"receiver", "var x = map[int]int{}\nfunc f() { x[1] = 1 }", "a global that changes"},
		{"cmd/walferry", "func init() {}", "no init()"},
	} {
		got := brokenIn(t, c.folder, c.text)
		if !strings.Contains(strings.Join(got, "\n"), c.want) {
			t.Errorf("%s: %q: got %q; want %q", c.folder, c.text, got, c.want)
		}
	}
	for _, c := range []struct{ folder, text string }{
		{"segment", `import "fmt"`},
		{"archive/objstore/s3", `import "github.com/aws/aws-sdk-go-v2/aws"`},
		{"cmd/walferry", "import (\"os\"; \"context\")\nfunc f() { _ = context.Background(); os.Exit(1) }"},
		{"receiver", "var x int\nfunc f() { x := 2; x = 1; _ = x }"},
		{"receiver", "type e struct{ Exit int }\nfunc f(os e) { _ = os.Exit }"},
	} {
		if got := brokenIn(t, c.folder, c.text); len(got) > 0 {
			t.Errorf("%s: %q: got %q; want nothing", c.folder, c.text, got)
		}
	}
}

func brokenIn(t *testing.T, folder, text string) []string {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "x.go", "package x\n"+text, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := source{path: folder + "/x.go", folder: folder, file: f, fset: fset}
	return append(imports(s), house(s)...)
}
