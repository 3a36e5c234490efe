package filesync

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// thin removes replaced versions: those kept before the time given, and of each
// path all but the newest count. What had changed on this node itself stays.
func thin(versions string, before time.Time, count int) error {
	kept := map[string][]string{} // path of the original: its versions, oldest first
	var gone []string
	root := filepath.Join(versions, keptReplaced)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		base, at, ok := keptAt(d.Name())
		if !ok {
			return nil
		}
		if at.Before(before) {
			gone = append(gone, path)
		} else {
			of := filepath.Join(filepath.Dir(path), base)
			kept[of] = append(kept[of], path)
		}
		if d.IsDir() {
			return filepath.SkipDir
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("thin out versions: %w", err)
	}
	for _, paths := range kept {
		slices.Sort(paths) // the time is the end of the name
		gone = append(gone, paths[:max(0, len(paths)-count)]...)
	}
	var errs []error
	for _, path := range gone {
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}
