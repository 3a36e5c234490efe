package dev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/example/notes/units"
	"github.com/understudy-ha/understudy/services/supervisor"
)

// NodeSpec is what Install needs to know.
type NodeSpec struct {
	Root        string // the node's folder
	Name        string
	Address     string       // of 127.0.0.0/8
	Kind        cluster.Kind // empty: a manager
	Managers    []string     // addresses of the nodes that a runner finds a database on
	Bin         string       // folder of our binaries
	Consul      string       // the consul binary
	PostgresBin string       // folder of PostgreSQL's binaries
}

// longestRoot leaves room for the sockets below it: a unix socket's path has at
// most 107 bytes.
const longestRoot = 60

// Install does below spec.Root what the packages do on a host: folders, an empty
// PostgreSQL with Debian's layout, understudy.yaml, the unit files, the example
// manager. Nothing is started but PostgreSQL is enabled, as it is on a host.
// A runner gets no PostgreSQL. It may be repeated: what is there already is left
// alone, and the rest is done.
func Install(ctx context.Context, spec NodeSpec) error {
	if len(spec.Root) > longestRoot {
		return fmt.Errorf("install %s: %w: the path %s is longer than %d bytes, too long for the sockets below it; choose a shorter --dir", spec.Name, ErrUsage, spec.Root, longestRoot)
	}
	major, err := postgresMajor(ctx, spec.PostgresBin)
	if err != nil {
		return fmt.Errorf("install %s: %w", spec.Name, err)
	}
	if err := traversable(spec.Root); err != nil {
		return fmt.Errorf("install %s: %w", spec.Name, err)
	}
	l := config.Paths(spec.Root)
	for _, dir := range []string{l.State, l.Log, l.SSL, l.Units, filepath.Join(l.Root, notesFiles)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("install %s: %w", spec.Name, err)
		}
	}
	if err := makeRun(l); err != nil {
		return fmt.Errorf("install %s: %w", spec.Name, err)
	}
	if err := writeUnits(spec, major); err != nil {
		return fmt.Errorf("install %s: %w", spec.Name, err)
	}
	if err := writeConfig(spec, major); err != nil {
		return fmt.Errorf("install %s: %w", spec.Name, err)
	}
	if spec.Kind == cluster.Runner {
		return nil
	}
	if err := createPostgres(ctx, spec, major); err != nil {
		return fmt.Errorf("install %s: %w", spec.Name, err)
	}
	return supervisor.Enable(l.Units, PostgresUnit)
}

const notesFiles = "/var/lib/notes/files"

// makeRun makes the folders of /run anew, as a boot does.
func makeRun(l config.Layout) error {
	if err := os.MkdirAll(l.Run, 0o755); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	for _, sockets := range []string{filepath.Join(l.Root, "run/postgresql"), filepath.Join(l.Run, "postgresql")} {
		if err := os.MkdirAll(sockets, 0o755); err != nil {
			return fmt.Errorf("make run directory: %w", err)
		}
		if err := giveToPostgres(sockets); err != nil {
			return err
		}
	}
	return nil
}

// writeConfig writes understudy.yaml, unless there is one.
func writeConfig(spec NodeSpec, major int) error {
	file := config.Paths(spec.Root).Config
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	c := config.Defaults()
	c.Services = config.Services{Manager: "exec", Always: []string{units.Web}}
	if spec.Kind == cluster.Runner {
		c.Node.Kind = cluster.Runner
	} else {
		home, conf := postgresDirs(major)
		c.Postgres = config.Postgres{
			BinDir: spec.PostgresBin, DataDir: home, ConfigFile: filepath.Join(conf, "postgresql.conf"),
			Port: PortPostgres, User: postgresUser(), Unit: PostgresUnit,
		}
		c.Services.Leader = []string{units.Worker}
	}
	c.Files = []config.Folder{{Path: notesFiles}}
	text, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return replaceFile(file, "# The name and the address are set by 'understudy cluster start' and 'join'.\n"+string(text))
}

// replaceFile writes a file so that a crash leaves all of it or nothing.
func replaceFile(file, text string) error {
	if old, err := os.ReadFile(file); err == nil && string(old) == text {
		return nil
	}
	temp := file + ".new"
	if err := os.WriteFile(temp, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	if err := os.Rename(temp, file); err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	return nil
}

// FindBinaries returns where everything is that a dev cluster runs: our binaries
// in bin, or beside this one when bin is empty; consul there or on PATH; the
// newest PostgreSQL. The error names everything that is missing and what to do.
func FindBinaries(bin string) (Cluster, error) {
	if bin == "" {
		self, err := os.Executable()
		if err != nil {
			return Cluster{}, fmt.Errorf("find binaries: %w", err)
		}
		if self, err = filepath.EvalSymlinks(self); err != nil {
			return Cluster{}, fmt.Errorf("find binaries: %w", err)
		}
		bin = filepath.Dir(self)
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		return Cluster{}, fmt.Errorf("find binaries: %w", err)
	}
	c := Cluster{Bin: bin}
	var missing []error
	for _, name := range []string{"understudy", "check-runner", "consul-watcher", "handler-runner", "file-sync", "postgres-helper", "notes"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			missing = append(missing, fmt.Errorf("find binaries: no %s in %s; 'make build' makes it", name, bin))
		}
	}
	c.Consul = filepath.Join(bin, "consul")
	if _, err := os.Stat(c.Consul); err != nil {
		if c.Consul, err = exec.LookPath("consul"); err != nil {
			missing = append(missing, fmt.Errorf("find binaries: no consul in %s nor on PATH; 'make setup' builds it", bin))
		}
	}
	if c.PostgresBin, err = findPostgres("/usr/lib/postgresql"); err != nil {
		missing = append(missing, err)
	}
	return c, errors.Join(missing...)
}

// oldestPostgres is the first major version that understudy works with.
const oldestPostgres = 15

// findPostgres returns the binaries of the newest PostgreSQL, as Debian lays
// them out, or those on PATH.
func findPostgres(debian string) (string, error) {
	entries, err := os.ReadDir(debian)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("find PostgreSQL: %w", err)
	}
	newest := 0
	for _, e := range entries {
		major, err := strconv.Atoi(e.Name())
		if err != nil || major < oldestPostgres || major <= newest {
			continue
		}
		if _, err := os.Stat(filepath.Join(debian, e.Name(), "bin/initdb")); err == nil {
			newest = major
		}
	}
	if newest > 0 {
		return filepath.Join(debian, strconv.Itoa(newest), "bin"), nil
	}
	initdb, err := exec.LookPath("initdb")
	if err != nil {
		return "", fmt.Errorf("find PostgreSQL: version %d or newer is neither in %s nor on PATH; install the package postgresql", oldestPostgres, debian)
	}
	return filepath.Dir(initdb), nil
}

var majorVersion = regexp.MustCompile(`\) (\d+)`)

func postgresMajor(ctx context.Context, bin string) (int, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "postgres"), "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("ask PostgreSQL for its version: %w", err)
	}
	m := majorVersion.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("ask PostgreSQL for its version: %q is none", strings.TrimSpace(string(out)))
	}
	major, _ := strconv.Atoi(string(m[1]))
	if major < oldestPostgres {
		return 0, fmt.Errorf("PostgreSQL in %s is version %d; %d or newer is needed", bin, major, oldestPostgres)
	}
	return major, nil
}

// traversable says whether the user that PostgreSQL runs as can come down to a
// folder, of which the lower part may not exist yet.
func traversable(dir string) error {
	cred, err := postgresCredential()
	if err != nil || cred == nil {
		return err
	}
	for up := dir; ; up = filepath.Dir(up) {
		info, err := os.Stat(up)
		if err == nil && !canEnter(info, cred.Uid, append(slices.Clone(cred.Groups), cred.Gid)) {
			return fmt.Errorf("%w: PostgreSQL runs as user %s, which cannot enter %s; choose another --dir, or 'chmod o+x %s'", ErrUsage, postgresUser(), up, up)
		}
		if up == filepath.Dir(up) {
			return nil
		}
	}
}
