package membership

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/packaging"
	"github.com/understudy-ha/understudy/services/unitfile"
)

// The drop-in has the paths of the host, and goes without a trace.
func TestGuard(t *testing.T) {
	h := &node.Host{Config: config.Defaults(), Layout: config.Paths(t.TempDir())}
	plain, err := packaging.Unit(packaging.PostgresDropIn)
	if err != nil {
		t.Fatal(err)
	}
	if same, err := adapt(plain, h.Config.Postgres); err != nil || same != plain {
		t.Errorf("on Debian 12 the text changes: %v\n%s", err, same)
	}
	h.Config.Postgres = config.Postgres{
		BinDir: "/opt/pg/bin", DataDir: "/srv/pg/data", ConfigFile: "/srv/pg/conf/postgresql.conf", User: "pg", Unit: "postgresql@16-own",
	}
	for range 2 {
		if err := guard(h); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(h.Layout.Units, "postgresql@16-own.service.d/understudy.conf")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	u, err := unitfile.Parse("postgresql@16-own.service", string(text))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(u.Start.Argv, " "); got != "/opt/pg/bin/postgres -D /srv/pg/data -c config_file=/srv/pg/conf/postgresql.conf" || u.User != "pg" || u.Group != "pg" {
		t.Errorf("%s as %s:%s", got, u.User, u.Group)
	}
	for _, left := range []string{"/15/", "/var/lib/postgresql", "/etc/postgresql", "=postgres\n"} {
		if strings.Contains(string(text), left) {
			t.Errorf("%q is left:\n%s", left, text)
		}
	}
	for range 2 {
		if err := unguard(h); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Dir(file)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
	h.Config.Postgres.DataDir = "/srv/my data"
	if err := guard(h); err == nil {
		t.Error("a path with a space was written into a unit file")
	}
}

// A dev node has a unit of its own.
func TestGuardOfDevNode(t *testing.T) {
	h := &node.Host{Config: config.Defaults(), Layout: config.Paths(t.TempDir())}
	h.Config.Services.Manager = "exec"
	if err := guard(h); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(h.Layout.Units); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was written: %v", err)
	}
}
