package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// buildPanicking builds a binary with a bug: its fetch panics. The source is
// changed in an overlay of the build, never in the checkout.
func (l *lab) buildPanicking(ctx context.Context) (string, error) {
	const file, function = "fetch.go", "runFetch"
	where, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", "github.com/walferry/walferry/cmd/walferry").Output()
	if err != nil {
		return "", fmt.Errorf("looking for cmd/walferry: %w", err)
	}
	original := filepath.Join(strings.TrimSpace(string(where)), file)
	source, err := os.ReadFile(original)
	if err != nil {
		return "", err
	}
	changed, err := insertPanic(source, function)
	if err != nil {
		return "", fmt.Errorf("%s: %w", original, err)
	}
	replacement := filepath.Join(l.dir, "panicking.go")
	if err := os.WriteFile(replacement, changed, 0o600); err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{original: replacement}})
	if err != nil {
		return "", err
	}
	list := filepath.Join(l.dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		return "", err
	}
	return l.build(ctx, "walferry-panicking", "-overlay", list)
}

// insertPanic makes a function begin with a panic.
func insertPanic(source []byte, function string) ([]byte, error) {
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, "", source, 0)
	if err != nil {
		return nil, err
	}
	for _, d := range parsed.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Name.Name == function && f.Body != nil {
			at := files.Position(f.Body.Lbrace).Offset + 1
			return slices.Concat(source[:at], []byte(` if len("a bug") > 0 { panic("a bug") };`), source[at:]), nil
		}
	}
	return nil, fmt.Errorf("no function %s", function)
}
