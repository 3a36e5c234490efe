package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/cluster"
)

func load(t *testing.T, text string) (Config, string, error) {
	t.Helper()
	root := t.TempDir()
	file := Paths(root).Config
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := Load(root)
	return c, root, err
}

func TestLoadFillsInDefaultsUnderTheRoot(t *testing.T) {
	c, root, err := load(t, "node: {name: alpha, address: 10.0.0.1}\nfiles: [{path: /srv/app}]\nservices: {always: [web.service]}\n")
	if err != nil {
		t.Fatal(err)
	}
	if c.Node.Kind != cluster.Manager || c.Postgres.Port != 5432 || c.StatusPort() != 8008 || c.APIPort() != 8009 || c.Services.Manager != "systemd" {
		t.Errorf("defaults are missing: %+v", c)
	}
	if c.Postgres.DataDir != filepath.Join(root, "var/lib/postgresql/15/main") || c.Files[0].Path != filepath.Join(root, "srv/app") {
		t.Errorf("not under the root: %s, %s", c.Postgres.DataDir, c.Files[0].Path)
	}
	if c.Postgres.BinDir != "/usr/lib/postgresql/15/bin" {
		t.Errorf("the machine's binaries moved to %s", c.Postgres.BinDir)
	}
}

func TestLoadNamesWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"unknown key":          {"node:\n  name: alpha\n  colour: red\n", "[3:3] unknown field \"colour\""},
		"wrong type":           {"postgres:\n  port: many\n", "[2:9]"},
		"not YAML":             {"node: {name: alpha\n", "[1:"},
		"bad name":             {"node: {name: Alpha_1}\n", "node.name"},
		"host name as address": {"node: {address: alpha.example}\n", "node.address"},
		"unknown kind":         {"node: {kind: witness}\n", "node.kind"},
		"unknown manager":      {"services: {manager: init.d}\n", "services.manager"},
		"no port":              {"status: {listen: localhost}\n", "status.listen"},
		"port out of range":    {"api: {listen: ':70000'}\n", "api.listen"},
	} {
		if _, _, err := load(t, c.text); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "understudy.yaml") {
			t.Errorf("%s: %v, want the file and %q", name, err, c.want)
		}
	}
}

func TestLoadWithoutAFile(t *testing.T) {
	if _, err := Load(t.TempDir()); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "docs/operations.md") {
		t.Errorf("%v does not say what to do", err)
	}
}

func TestListenOn(t *testing.T) {
	for listen, want := range map[string]string{":8008": "10.0.0.1:8008", "0.0.0.0:8008": "0.0.0.0:8008", "[::1]:80": "[::1]:80"} {
		if got := ListenOn("10.0.0.1", listen); got != want {
			t.Errorf("%s: %s, want %s", listen, got, want)
		}
	}
}
