package pgrepl

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// replaceFile puts text in the place of a file, so that a reader sees the old or
// the new one. It returns before the disk has it: sync waits for that, and must
// be called. What acts on the file can thus go on meanwhile.
func (s *Server) replaceFile(file, text string, mode os.FileMode) (sync func() error, err error) {
	fail := func(err error) (func() error, error) { return nil, fmt.Errorf("write %s: %w", file, err) }
	f, err := os.CreateTemp(filepath.Dir(file), ".understudy-*")
	if err != nil {
		return fail(err)
	}
	name := f.Name()
	give := func() error {
		if _, err := f.WriteString(text); err != nil {
			return err
		}
		if err := f.Chmod(mode); err != nil {
			return err
		}
		if err := s.run.Own(name); err != nil {
			return err
		}
		return os.Rename(name, file)
	}
	if err := give(); err != nil {
		f.Close()
		os.Remove(name)
		return fail(err)
	}
	return func() error {
		defer f.Close()
		if err := f.Sync(); err != nil {
			return fmt.Errorf("sync %s: %w", file, err)
		}
		return syncPath(filepath.Dir(file))
	}, nil
}

// writeFile is replaceFile that waits for the disk.
func (s *Server) writeFile(file, text string, mode os.FileMode) error {
	sync, err := s.replaceFile(file, text, mode)
	if err != nil {
		return err
	}
	return sync()
}

// refreshFile is writeFile that leaves a file alone which has that text.
func (s *Server) refreshFile(file, text string, mode os.FileMode) error {
	if now, err := os.ReadFile(file); err == nil && string(now) == text {
		return nil
	}
	return s.writeFile(file, text, mode)
}

// syncPath makes the entries of a folder, or the content of a file, durable.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

// makeDir makes a folder that belongs to PostgreSQL's user, durably.
func (s *Server) makeDir(dir string, mode os.FileMode) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	if err := os.Mkdir(dir, mode); err != nil && !os.IsExist(err) {
		return fmt.Errorf("make folder: %w", err)
	}
	if err := s.run.Own(dir); err != nil {
		return fmt.Errorf("make folder %s: %w", dir, err)
	}
	return syncPath(filepath.Dir(dir))
}

// removeFiles deletes files; those that are not there are no error.
func removeFiles(files ...string) error {
	for _, f := range files {
		if err := os.Remove(f); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("remove: %w", err)
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// confQuote writes a value for a PostgreSQL configuration file.
func confQuote(v string) string { return "'" + strings.ReplaceAll(v, "'", "''") + "'" }
