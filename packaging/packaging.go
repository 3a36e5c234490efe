// Package packaging holds the files that an installation puts on a host. The
// unit files are those of a real host, with its paths; package dev renders its
// own from the same text.
package packaging

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
)

//go:embed systemd
var files embed.FS

// Setup is the script that installs what a host needs to build understudy, and,
// with the argument "test", to test it.
//
//go:embed setup
var Setup string

// PostgresDropIn is the unit file that start and join lay over Debian's
// postgresql@15-main.service. It is no part of the package.
const PostgresDropIn = "postgresql@15-main.service.d/understudy.conf"

// Daemons are the units of understudy itself, in the order in which a host that
// joins has a use for them.
func Daemons() []string {
	return []string{
		"understudy-consul.service",
		"understudy-consul-watcher.service",
		"understudy-postgres-helper.service",
		"understudy-check-runner.service",
		"understudy-file-sync.service",
		"understudy-handler-runner.service",
	}
}

// Unit returns the text of a unit file, named by its path below a folder of
// systemd's units. An unknown name is an error that wraps fs.ErrNotExist.
func Unit(name string) (string, error) {
	text, err := fs.ReadFile(files, path.Join("systemd", name))
	if err != nil {
		return "", fmt.Errorf("read unit file: %w", err)
	}
	return string(text), nil
}
