// Package folders is what of a synced folder is known without Syncthing: how it is
// called, and what marks it.
package folders

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// ID names the folder that lies at path under root. It depends on nothing but the way
// from root to path, so that members with different roots agree on it.
func ID(root, path string) (string, error) {
	rel, err := filepath.Rel(root, path)
	if err != nil || rel == "." || strings.HasPrefix(rel, "..") {
		return "", fmt.Errorf("folder %s does not lie under %s", path, root)
	}
	slug := regexp.MustCompile(`[^a-zA-Z0-9]+`).ReplaceAllString(rel, "-")
	sum := sha256.Sum256([]byte(rel))
	return fmt.Sprintf("%s-%x", strings.Trim(slug, "-"), sum[:4]), nil
}

// Marker is the file in a folder that says that the folder is really there. It lies in
// the folder, and so on the file system that is mounted there. Syncthing touches
// nothing in a folder without it, and does not make one under a name that is not its
// own default.
func Marker(id string) string { return filepath.Join(".stfolder", id) }

// Forget takes the marker from a folder. What that holds stays.
func Forget(path, id string) error {
	marker := filepath.Join(path, Marker(id))
	if err := os.Remove(marker); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take the marker out of %s: %w", path, err)
	}
	_ = os.Remove(filepath.Dir(marker)) // a marker of somebody else may be in it
	return nil
}
