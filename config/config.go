// Package config reads a host's understudy.yaml and knows where on the host
// everything lies.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/understudy-ha/understudy/cluster"
)

// Config is understudy.yaml: what is true of this host alone. Settings that all
// members share are options of the cluster.
type Config struct {
	Node     Node     `yaml:"node"`
	Postgres Postgres `yaml:"postgres"`
	Services Services `yaml:"services"`
	Files    []Folder `yaml:"files"`
	Status   Status   `yaml:"status"`
	API      API      `yaml:"api"`
}

// Node names this host in the cluster. Name and Address are filled in by
// cluster start and cluster join when they are not given here.
type Node struct {
	Name    string       `yaml:"name"`
	Address string       `yaml:"address"` // IP
	Kind    cluster.Kind `yaml:"kind"`
}

// Postgres says which server on this host belongs to the manager.
type Postgres struct {
	BinDir     string            `yaml:"bin_dir"`     // holds postgres, pg_basebackup, pg_rewind
	DataDir    string            `yaml:"data_dir"`    // PGDATA
	ConfigFile string            `yaml:"config_file"` // postgresql.conf; its folder has a conf.d that it includes
	Port       int               `yaml:"port"`
	User       string            `yaml:"user"` // the system user that PostgreSQL runs as
	Unit       string            `yaml:"unit"` // the unit that runs it
	Parameters map[string]string `yaml:"parameters"`
}

// Services are the units that make up the manager.
type Services struct {
	Manager string   `yaml:"manager"` // systemd, or exec in dev mode
	Always  []string `yaml:"always"`  // run on every member
	Leader  []string `yaml:"leader"`  // run on the active node only
}

// Folder is a directory of files that all members hold.
type Folder struct {
	Path   string   `yaml:"path"`
	Ignore []string `yaml:"ignore"` // Syncthing's ignore patterns
}

// Status is the plain HTTP port that load balancers ask.
type Status struct {
	Listen        string   `yaml:"listen"`          // host:port; no host: the node's address
	Paths         []string `yaml:"paths"`           // aliases of /status
	BasicAuthFile string   `yaml:"basic_auth_file"` // user:password; empty: none asked for
}

// API is the HTTPS port between nodes and for operators.
type API struct {
	Listen string `yaml:"listen"` // host:port; no host: the node's address
}

// Defaults is the configuration of a Debian 12 host that says nothing else.
func Defaults() Config {
	return Config{
		Node: Node{Kind: cluster.Manager},
		Postgres: Postgres{
			BinDir:     "/usr/lib/postgresql/15/bin",
			DataDir:    "/var/lib/postgresql/15/main",
			ConfigFile: "/etc/postgresql/15/main/postgresql.conf",
			Port:       5432,
			User:       "postgres",
			Unit:       "postgresql@15-main.service",
		},
		Services: Services{Manager: "systemd"},
		Status:   Status{Listen: ":8008"},
		API:      API{Listen: ":8009"},
	}
}

// Load reads root/etc/understudy/understudy.yaml over the defaults. A key that
// is not known, or a value that does not fit, is an error with its line. A file
// that does not exist is an error that wraps fs.ErrNotExist.
func Load(root string) (Config, error) {
	file := Paths(root).Config
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, fmt.Errorf("read configuration: %w; the host must be prepared first, see docs/operations.md", err)
	}
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	c := Defaults()
	if err := yaml.UnmarshalWithOptions(text, &c, yaml.Strict()); err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", file, err)
	}
	if err := c.check(); err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", file, err)
	}
	c.rebase(root)
	return c, nil
}

func (c *Config) check() error {
	if c.Node.Name != "" {
		if err := cluster.CheckName(c.Node.Name); err != nil {
			return fmt.Errorf("node.name: %w", err)
		}
	}
	if c.Node.Address != "" {
		if err := cluster.CheckAddress(c.Node.Address); err != nil {
			return fmt.Errorf("node.address: %w", err)
		}
	}
	if c.Node.Kind != cluster.Manager && c.Node.Kind != cluster.Runner {
		return fmt.Errorf("node.kind: %q is neither manager nor runner", c.Node.Kind)
	}
	if m := c.Services.Manager; m != "systemd" && m != "exec" {
		return fmt.Errorf("services.manager: %q is neither systemd nor exec", m)
	}
	for key, listen := range map[string]string{"status.listen": c.Status.Listen, "api.listen": c.API.Listen} {
		if _, err := port(listen); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

// rebase puts every path of the host under root. The binaries of PostgreSQL are
// the machine's and stay.
func (c *Config) rebase(root string) {
	for _, p := range []*string{&c.Postgres.DataDir, &c.Postgres.ConfigFile, &c.Status.BasicAuthFile} {
		if *p != "" {
			*p = filepath.Join(root, *p)
		}
	}
	for i := range c.Files {
		c.Files[i].Path = filepath.Join(root, c.Files[i].Path)
	}
}

func port(listen string) (int, error) {
	_, p, err := net.SplitHostPort(listen)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(p)
	if err != nil || n < 1 || n > 65535 {
		return 0, fmt.Errorf("%q is not a port", p)
	}
	return n, nil
}

// StatusPort and APIPort are the ports that other members are told.
func (c Config) StatusPort() int { p, _ := port(c.Status.Listen); return p }

// APIPort is the port of the API.
func (c Config) APIPort() int { p, _ := port(c.API.Listen); return p }

// ListenOn puts the node's address before a listen setting that names only a port.
func ListenOn(address, listen string) string {
	host, p, _ := net.SplitHostPort(listen)
	if host == "" {
		host = address
	}
	return net.JoinHostPort(host, p)
}

// FileSyncPort is where Syncthing listens on the node's address.
const FileSyncPort = 22000

// StaleAfter is the age from which on a file in the run directory is no longer
// believed: what it says is unknown.
const StaleAfter = 10 * time.Second
