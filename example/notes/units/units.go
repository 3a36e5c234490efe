// Package units holds the unit files of the notes example: notes-web runs on
// every node, notes-worker on the active one.
package units

import "embed"

// Files are the unit files, by name.
//
//go:embed *.service
var Files embed.FS

// The units, by where they run.
const (
	Web    = "notes-web.service"    // always
	Worker = "notes-worker.service" // leader
)
