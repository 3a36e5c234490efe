// Package statefile keeps one JSON value in one file, so that a reader sees the
// old value or the new one and a crash loses neither.
package statefile

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/google/renameio/v2"
)

// Write replaces the file with v: written beside, synced, renamed. The folder
// is made when it does not exist. Mode 0600 unless told otherwise by WriteMode.
func Write(file string, v any) error { return WriteMode(file, v, 0o600) }

// WriteMode is Write with the permissions of the file.
func WriteMode(file string, v any, mode os.FileMode) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return WriteText(file, append(text, '\n'), mode)
}

// Read returns what Write kept. A missing file is an error that wraps
// fs.ErrNotExist; the caller decides what its absence means.
func Read[T any](file string) (T, error) {
	var v T
	text, err := os.ReadFile(file)
	if err != nil {
		return v, fmt.Errorf("read state: %w", err)
	}
	if err := json.Unmarshal(text, &v); err != nil {
		return v, fmt.Errorf("read state %s: %w", file, err)
	}
	return v, nil
}

// WriteText replaces the file with text, in the same way as Write. What root writes
// belongs to whom its folder belongs to: so commands that an operator runs leave
// nothing behind that a daemon of another user could not read.
func WriteText(file string, text []byte, mode os.FileMode) error {
	if err := writeText(file, text, mode); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}

func writeText(file string, text []byte, mode os.FileMode) error {
	// Beside it, or the library tries each time whether one of the system's would do.
	f, err := renameio.NewPendingFile(file, renameio.WithStaticPermissions(mode), renameio.WithTempDir(filepath.Dir(file)))
	if err != nil {
		return err
	}
	defer f.Cleanup() // does nothing once the file has its name
	if _, err := f.Write(text); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		folder, err := os.Stat(filepath.Dir(file))
		if err != nil {
			return err
		}
		owner := folder.Sys().(*syscall.Stat_t)
		if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
	}
	return f.CloseAtomicallyReplace()
}
