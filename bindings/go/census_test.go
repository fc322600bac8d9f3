// SPDX-License-Identifier: MIT

package vmm_test

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestCensus: everything that vmm.h declares is used by this package, and the table
// in docs/go.md says how it is called here.
func TestCensus(t *testing.T) {
	header, err := os.ReadFile("../../vmm.h")
	ok(t, err)
	text := regexp.MustCompile(`(?s)/\*.*?\*/`).ReplaceAllString(string(header), "")
	public := publicNames(text)
	if len(public) < 100 {
		t.Fatalf("vmm.h declares %d names only", len(public))
	}

	used, exported := packageNames(t)
	for _, name := range public {
		if !used["C."+name] {
			t.Errorf("%s: not bound", name)
		}
	}
	for structure, fields := range structFields(text) {
		for _, f := range fields {
			if !used["."+f] && !used["._"+f] {
				t.Errorf("struct %s: %s is not bound", structure, f)
			}
		}
	}

	page, err := os.ReadFile("../../docs/go.md")
	ok(t, err)
	rows := make(map[string]string)
	row := regexp.MustCompile("(?m)^\\| `((?:vmm|VMM)_\\w+)` \\| `([\\w.()*]+)`")
	for _, m := range row.FindAllStringSubmatch(string(page), -1) {
		rows[m[1]] = m[2]
		if !exported[m[2]] {
			t.Errorf("docs/go.md: %s: there is no %s", m[1], m[2])
		}
	}
	for _, name := range public {
		if rows[name] == "" {
			t.Errorf("docs/go.md: no row for %s", name)
		}
		delete(rows, name)
	}
	for name := range rows {
		t.Errorf("docs/go.md: vmm.h has no %s", name)
	}
}

// publicNames gives functions, enumerators, and macros that have a number.
func publicNames(text string) (names []string) {
	for _, m := range regexp.MustCompile(`(?m)^VMM_API.*?\b(vmm_\w+)\(`).FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	for _, body := range regexp.MustCompile(`enum \{([^}]*)\}`).FindAllStringSubmatch(text, -1) {
		for _, m := range regexp.MustCompile(`\b(VMM_\w+)\s*=`).FindAllStringSubmatch(body[1], -1) {
			names = append(names, m[1])
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^#define (VMM_VERSION\w*)`).FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	return names
}

// structFields gives the fields of each struct, but for those that only the C side
// sets: its size, what is behind a callback, what is reserved.
func structFields(text string) map[string][]string {
	all := make(map[string][]string)
	name := regexp.MustCompile(`\(?\*?\s*(\w+)\s*(?:\[\w+\])?\)?\s*(?:\(.*\))?$`)
	for _, m := range regexp.MustCompile(`(?s)struct (vmm_\w+) \{(.*?)\n\};`).FindAllStringSubmatch(text, -1) {
		for _, decl := range strings.Split(strings.Join(strings.Fields(m[2]), " "), ";") {
			if i := strings.Index(decl, "(*"); i >= 0 { // a callback: set in shim.c
				continue
			}
			for i, part := range strings.Split(decl, ",") {
				f := name.FindStringSubmatch(strings.TrimSpace(part))
				if f == nil || i == 0 && !strings.Contains(strings.TrimSpace(part), " ") {
					continue
				}
				if f[1] == "size" || f[1] == "reserved" || strings.HasSuffix(f[1], "_arg") {
					continue
				}
				all[m[1]] = append(all[m[1]], f[1])
			}
		}
	}
	return all
}

// packageNames gives what the package's source selects, as "C.x" and ".x", and what
// it exports, as "F", "T.M", "C".
func packageNames(t *testing.T) (used, exported map[string]bool) {
	used, exported = make(map[string]bool), make(map[string]bool)
	files, err := filepath.Glob("*.go")
	ok(t, err)
	fset := token.NewFileSet()
	var parsed []*ast.File
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		ok(t, err)
		parsed = append(parsed, f)
		ast.Inspect(f, func(n ast.Node) bool {
			if s, is := n.(*ast.SelectorExpr); is {
				used["."+s.Sel.Name] = true
				if x, is := s.X.(*ast.Ident); is {
					used[x.Name+"."+s.Sel.Name] = true
				}
			}
			return true
		})
	}
	pkg, err := doc.NewFromFiles(fset, parsed, "vmm")
	ok(t, err)
	undocumented := func(name, text string) {
		exported[name] = true
		if text == "" && name != "Code.Error" && !strings.HasSuffix(name, ".String") && !strings.HasSuffix(name, ".Error") {
			t.Errorf("%s has no comment", name)
		}
	}
	values := func(vs []*doc.Value) {
		for _, v := range vs {
			for _, n := range v.Names {
				undocumented(n, v.Doc)
			}
		}
	}
	functions := func(prefix string, fs []*doc.Func) {
		for _, f := range fs {
			undocumented(prefix+f.Name, f.Doc)
		}
	}
	values(pkg.Consts)
	functions("", pkg.Funcs)
	for _, ty := range pkg.Types {
		undocumented(ty.Name, ty.Doc)
		values(ty.Consts)
		functions("", ty.Funcs)
		functions(ty.Name+".", ty.Methods)
	}
	return used, exported
}
