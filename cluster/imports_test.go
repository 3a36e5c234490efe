package cluster_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/understudy-ha/understudy/"

// rules say what of ours a folder may import, and why nothing else. A folder
// that is not listed is free.
var rules = map[string]struct {
	may []string
	why string
}{
	"cluster":       {nil, "decisions are pure: they know no adapter"},
	"statefile":     {nil, "it keeps any value"},
	"history":       {[]string{"cluster"}, "it reads events, wherever they are kept"},
	"config":        {[]string{"cluster"}, "it describes a host in the cluster's words"},
	"haproxy":       {[]string{"cluster"}, "it puts members into words, and asks nobody"},
	"registry":      {[]string{"cluster"}, "adapters do not know each other"},
	"pgrepl":        {[]string{"cluster", "pgrepl"}, "adapters do not know each other"},
	"filesync":      {[]string{"cluster", "statefile", "filesync"}, "adapters do not know each other"},
	"services":      {[]string{"cluster", "services", "statefile"}, "adapters do not know each other"},
	"certs":         {[]string{"cluster", "statefile"}, "adapters do not know each other"},
	"checkrunner":   {[]string{"cluster", "config"}, "a daemon gets its adapters from cmd"},
	"handlerrunner": {[]string{"cluster", "statefile"}, "a daemon gets its adapters from cmd"},
	"watcher":       {[]string{"cluster", "statefile", "config"}, "a daemon gets its adapters from cmd"},
	"api":           {[]string{"cluster"}, "it serves what it is given"},
}

// only says who may import a module, so that one place knows it.
var only = map[string][]string{
	"github.com/hashicorp/consul/api":         {"registry"},
	"github.com/syncthing/syncthing":          {"filesync"},
	"github.com/jackc/pgx":                    {"pgrepl", "example", "dev", "chaos"},
	"github.com/anishathalye/porcupine":       {"chaos"},
	"github.com/coreos/go-systemd":            {"services"},
	"github.com/understudy-ha/understudy/cmd": {"cmd"},
}

func TestImports(t *testing.T) {
	walked := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "tools") {
			return orSkip(err, d)
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		folder := strings.Split(filepath.ToSlash(path), "/")[1]
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		walked++
		for _, i := range file.Imports {
			name, _ := strconv.Unquote(i.Path.Value)
			checkImport(t, path, folder, name)
		}
		return nil
	})
	if err != nil || walked < 20 {
		t.Fatal(walked, "files read,", err)
	}
}

func orSkip(err error, d fs.DirEntry) error {
	if err != nil {
		return err
	}
	if d.Name() == ".." {
		return nil
	}
	return filepath.SkipDir
}

func checkImport(t *testing.T, path, folder, name string) {
	for prefix, who := range only {
		if strings.HasPrefix(name, prefix) && !slices.Contains(who, folder) && !strings.HasSuffix(filepath.Dir(path), "test") {
			t.Errorf("%s imports %s; only %v may", path, name, who)
		}
	}
	rule, ruled := rules[folder]
	ours, isOurs := strings.CutPrefix(name, module)
	test := strings.HasSuffix(filepath.Dir(path), "test") // registrytest and the like
	if ruled && isOurs && !test && !slices.Contains(rule.may, strings.Split(ours, "/")[0]) {
		t.Errorf("%s imports %s: %s", path, name, rule.why)
	}
}
