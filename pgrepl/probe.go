package pgrepl

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// probeSize is one block of most file systems.
const probeSize = 4096

// Probe makes a small file beside the data directory, waits until the disk has it,
// removes it, and returns how many bytes of that file system are free for ordinary
// users. It hangs where the disk does.
func (s *Server) Probe() (free int64, err error) { return probe(s.DataDir + ".probe") }

func probe(file string) (free int64, err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, fmt.Errorf("probe the disk: %w", err)
	}
	defer f.Close()
	defer os.Remove(file)
	if _, err := f.Write(make([]byte, probeSize)); err != nil {
		return 0, fmt.Errorf("probe the disk: %w", err)
	}
	if err := f.Sync(); err != nil {
		return 0, fmt.Errorf("probe the disk: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(file), &fs); err != nil {
		return 0, fmt.Errorf("measure free space: %w", err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}
