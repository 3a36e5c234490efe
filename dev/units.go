package dev

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/example/notes/units"
	"github.com/understudy-ha/understudy/packaging"
	"github.com/understudy-ha/understudy/services/unitfile"
)

// writeUnits writes the unit files of a host as they are, and beside each a
// drop-in, dev.conf, with what is different on this node: its folder, its
// binaries, its users.
func writeUnits(spec NodeSpec, major int) error {
	texts := make(map[string]string)
	for _, name := range packaging.Daemons() {
		text, err := packaging.Unit(name)
		if err != nil {
			return err
		}
		texts[name] = text
	}
	payload := []string{units.Web}
	if spec.Kind != cluster.Runner {
		guard, err := packaging.Unit(packaging.PostgresDropIn)
		if err != nil {
			return err
		}
		texts[PostgresUnit] = "[Install]\nWantedBy=multi-user.target\n\n" + guard
		payload = append(payload, units.Worker)
	}
	for _, name := range payload {
		text, err := units.Files.ReadFile(name)
		if err != nil {
			return fmt.Errorf("read unit file: %w", err)
		}
		texts[name] = string(text)
	}
	dir := config.Paths(spec.Root).Units
	for name, text := range texts {
		u, err := unitfile.Parse(name, text)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(dir, name+".d"), 0o755); err != nil {
			return fmt.Errorf("write unit file: %w", err)
		}
		if err := replaceFile(filepath.Join(dir, name), text); err != nil {
			return err
		}
		if err := replaceFile(filepath.Join(dir, name+".d", "dev.conf"), override(spec, major, u)); err != nil {
			return err
		}
	}
	return nil
}

// override is the drop-in that brings a host's unit to a dev node.
func override(spec NodeSpec, major int, u unitfile.Unit) string {
	var b strings.Builder
	line := func(name, value string) { fmt.Fprintf(&b, "%s=%s\n", name, value) }
	b.WriteString("# Written by understudy dev.\n[Unit]\n")
	if len(u.Conditions) > 0 {
		line("ConditionPathExists", "")
	}
	for _, c := range u.Conditions {
		not := ""
		if c.Not {
			not = "!"
		}
		line("ConditionPathExists", not+relocate(spec, major, c.Path))
	}
	b.WriteString("[Service]\n")
	// PostgreSQL alone insists on a user of its own.
	if u.Name != PostgresUnit {
		line("User", "")
		line("Group", "")
	}
	if len(u.StartPre) > 0 {
		line("ExecStartPre", "")
	}
	for _, c := range u.StartPre {
		if c.AsRoot {
			continue // for polkit, which no node of dev mode has
		}
		line("ExecStartPre", relocateCommand(spec, major, c))
	}
	line("ExecStart", "")
	line("ExecStart", relocateCommand(spec, major, u.Start))
	if strings.HasPrefix(u.Name, "notes-") {
		line("Environment", "")
		line("Environment", "NOTES_LISTEN="+spec.Address+":"+strconv.Itoa(PortNotes))
		line("Environment", unitfile.Quote("NOTES_DATABASE="+database(spec)))
		line("Environment", unitfile.Quote("NOTES_FILES="+filepath.Join(spec.Root, notesFiles)))
	}
	return b.String()
}

func relocateCommand(spec NodeSpec, major int, c unitfile.Command) string {
	argv := make([]string, len(c.Argv))
	for i, word := range c.Argv {
		argv[i] = relocate(spec, major, word)
	}
	if strings.HasPrefix(c.Argv[0], hostDaemons) && c.Argv[0] != hostConsul {
		argv = append(argv, "--root", spec.Root)
	}
	line := unitfile.Join(argv)
	if c.IgnoreFailure {
		line = "-" + line
	}
	return line
}

// Where a host has its binaries.
const (
	hostDaemons  = "/usr/lib/understudy/"
	hostConsul   = hostDaemons + "consul"
	hostNotes    = "/usr/bin/notes"
	hostPostgres = "/usr/lib/postgresql/15/bin/"
)

// relocate turns a host's path into the node's. A path may follow a "=".
func relocate(spec NodeSpec, major int, word string) string {
	if name, path, ok := strings.Cut(word, "="); ok && strings.HasPrefix(path, "/") {
		return name + "=" + relocate(spec, major, path)
	}
	switch word {
	case hostConsul:
		return spec.Consul
	case hostNotes:
		return filepath.Join(spec.Bin, "notes")
	}
	if name, ok := strings.CutPrefix(word, hostDaemons); ok {
		return filepath.Join(spec.Bin, name)
	}
	if name, ok := strings.CutPrefix(word, hostPostgres); ok {
		return filepath.Join(spec.PostgresBin, name)
	}
	for _, top := range []string{"/etc/", "/var/", "/run/"} {
		if strings.HasPrefix(word, top) {
			return filepath.Join(spec.Root, strings.Replace(word, "/postgresql/15/", "/postgresql/"+strconv.Itoa(major)+"/", 1))
		}
	}
	return word
}

// dsn lets any client in as superuser. Of several addresses the first that will do
// is taken.
func dsn(addresses ...string) string {
	hosts := make([]string, len(addresses))
	for i, a := range addresses {
		hosts[i] = a + ":" + strconv.Itoa(PortPostgres)
	}
	return "postgresql://postgres@" + strings.Join(hosts, ",") + "/postgres"
}

// database is where the example finds its notes. On a runner it reads from a
// standby: what it would write into the folder there goes nowhere.
func database(spec NodeSpec) string {
	if spec.Kind == cluster.Runner {
		return dsn(spec.Managers...) + "?target_session_attrs=standby"
	}
	return dsn(spec.Address)
}
