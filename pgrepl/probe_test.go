package pgrepl

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// The probe itself, on a real disk of 1 MB that fills up. Only root can make one.
func TestProbe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: no disk of a given size can be made")
		return
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) }()
	file := filepath.Join(dir, "main.probe")
	if free, err := probe(file); err != nil || free < 900<<10 || free > 1<<20 {
		t.Errorf("%d bytes are free: %v", free, err)
	}
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 2<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk did not fill up: %v", err)
	}
	if _, err := probe(file); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("on a full disk: %v", err)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the probe is left: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if _, err := probe(file); err != nil {
		t.Errorf("with room again: %v", err)
	}
}
