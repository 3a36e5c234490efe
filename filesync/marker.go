package filesync

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/understudy-ha/understudy/filesync/folders"
	"github.com/understudy-ha/understudy/statefile"
)

// made is kept for every folder that was set up on this node.
type made struct {
	Path string `json:"path"`
}

// prepare makes a folder and its marker at the very first start and remembers
// it. Later a missing marker means that the folder is not there; see missing.
func prepare(stateDir string, f Folder) error {
	file := filepath.Join(stateDir, "folders", f.ID+".json")
	_, err := statefile.Read[made](file)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	marker := filepath.Join(f.Path, folders.Marker(f.ID))
	if err := os.MkdirAll(f.Path, 0o755); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(marker), 0o755); err != nil {
		return fmt.Errorf("make marker: %w", err)
	}
	text := "Without this file nothing here is synchronised: it tells the folder from an empty mount point.\n"
	if err := os.WriteFile(marker, []byte(text), 0o644); err != nil {
		return fmt.Errorf("make marker: %w", err)
	}
	return statefile.Write(file, made{Path: f.Path})
}

// missing says what is wrong with a folder that is not there, or nothing.
func missing(f Folder) string {
	marker := filepath.Join(f.Path, folders.Marker(f.ID))
	_, err := os.Lstat(marker)
	switch {
	case err == nil:
		return ""
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("folder %s is not there: its marker %s is missing. Mount its file system; "+
			"only if the directory is really the right one, make the marker again: mkdir -p %s && touch %s",
			f.Path, marker, filepath.Dir(marker), marker)
	}
	return fmt.Sprintf("folder %s cannot be read: %v", f.Path, err)
}

// writeIgnores keeps the ignore patterns where the keeper serves them from.
func writeIgnores(dir string, patterns []string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keep ignore patterns: %w", err)
	}
	text := strings.Join(patterns, "\n")
	if err := os.WriteFile(filepath.Join(dir, ignoreFile), []byte(text+"\n"), 0o600); err != nil {
		return fmt.Errorf("keep ignore patterns: %w", err)
	}
	return nil
}
