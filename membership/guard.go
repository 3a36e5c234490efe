package membership

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/packaging"
	"github.com/understudy-ha/understudy/services"
	"github.com/understudy-ha/understudy/services/unitfile"
	"github.com/understudy-ha/understudy/statefile"
)

// guard lays the drop-in of a member over the unit of PostgreSQL. Before a host is a
// member its unit is Debian's own, whatever is installed. The server must be
// stopped, and systemd reads the drop-in when it next reads unit files. On a dev node
// the unit has all of it from the beginning. It may be repeated.
func guard(h *node.Host) error {
	if h.Config.Services.Manager == "exec" {
		return nil
	}
	text, err := guardText(h)
	if err != nil {
		return err
	}
	file := guardFile(h)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("guard PostgreSQL's unit: %w", err)
	}
	return statefile.WriteText(file, text, 0o644)
}

// RenewGuard lays the drop-in of this version over that of another one, so that it is
// in force the next time that PostgreSQL starts. A host without one, which is no
// member, gets none.
func RenewGuard(ctx context.Context, h *node.Host) (renewed bool, err error) {
	old, err := os.ReadFile(guardFile(h))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the guard of PostgreSQL's unit: %w", err)
	}
	text, err := guardText(h)
	if err != nil || bytes.Equal(old, text) {
		return false, err
	}
	if err := statefile.WriteText(guardFile(h), text, 0o644); err != nil {
		return false, err
	}
	return true, h.Units().Reload(ctx)
}

// unguard takes it away again.
func unguard(h *node.Host) error {
	file := guardFile(h)
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("give PostgreSQL's unit back: %w", err)
	}
	_ = os.Remove(filepath.Dir(file)) // which may hold drop-ins of the operator
	return nil
}

func guardFile(h *node.Host) string {
	return filepath.Join(h.Layout.Units, services.UnitName(h.Config.Postgres.Unit)+".d", filepath.Base(packaging.PostgresDropIn))
}

func guardText(h *node.Host) ([]byte, error) {
	text, err := packaging.Unit(packaging.PostgresDropIn)
	if err != nil {
		return nil, err
	}
	if text, err = adapt(text, h.Config.Postgres); err != nil {
		return nil, fmt.Errorf("guard PostgreSQL's unit: %w", err)
	}
	return []byte(text), nil
}

// adapt puts the paths and the user of this host into the text of the drop-in, which
// has those of Debian 12.
func adapt(text string, is config.Postgres) (string, error) {
	was := config.Defaults().Postgres
	for _, path := range []string{is.BinDir, is.DataDir, is.ConfigFile, is.User} {
		if unitfile.Quote(path) != path {
			return "", fmt.Errorf("%q of understudy.yaml cannot stand in a unit file", path)
		}
	}
	return strings.NewReplacer(
		was.BinDir, is.BinDir,
		was.DataDir, is.DataDir,
		was.ConfigFile, is.ConfigFile,
		filepath.Dir(was.ConfigFile), filepath.Dir(is.ConfigFile),
		"User="+was.User+"\n", "User="+is.User+"\n",
		"Group="+was.User+"\n", "Group="+is.User+"\n",
	).Replace(text), nil
}
