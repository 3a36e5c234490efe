package statefile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

type kept struct {
	Epoch int    `json:"epoch"`
	Text  string `json:"text"`
}

func epochIn(t *testing.T, file string) int {
	t.Helper()
	v, err := Read[kept](file)
	if err != nil {
		t.Fatal(err)
	}
	return v.Epoch
}

func TestKeep(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sub", "state.json")
	// Values that grow, shrink and cross a block; each is what is read next.
	for i, n := range []int{0, 10, 5000, 5000, 3, 3, 4050, 4051, 4052, 4053} {
		if err := Keep(file, kept{i, strings.Repeat("x", n)}); err != nil {
			t.Fatal(err)
		}
		if got := epochIn(t, file); got != i {
			t.Errorf("read %d after %d was written", got, i)
		}
	}
	// A spare that a crash has left half written is no harm.
	if err := os.WriteFile(file+".spare", []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := 20; i < 23; i++ {
		if err := Keep(file, kept{Epoch: i}); err != nil || epochIn(t, file) != i {
			t.Errorf("after a crash: %v", err)
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// On a disk without a free byte Write fails and Keep does not (trap 39). Only root
// can make such a disk.
func TestKeepOnFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: no disk of a given size can be made")
		return
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) }()
	file := filepath.Join(dir, "state.json")
	if err := Keep(file, kept{Epoch: 1}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 2<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk did not fill up: %v", err)
	}
	if err := Write(filepath.Join(dir, "other.json"), kept{Epoch: 1}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("an ordinary write: %v", err)
	}
	for i := 2; i < 10; i++ {
		if err := Keep(file, kept{Epoch: i}); err != nil || epochIn(t, file) != i {
			t.Fatalf("write %d: %v", i, err)
		}
	}
}
