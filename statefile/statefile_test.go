package statefile

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// What root writes belongs to whom the folder belongs to. An ordinary user can own
// nothing but what is his.
func TestFilesBelongToTheFoldersOwner(t *testing.T) {
	dir := t.TempDir()
	owner := os.Geteuid()
	if owner == 0 {
		owner = 65534
		if err := os.Chown(dir, owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "state.json")
	for range 2 { // made, and replaced
		if err := WriteMode(file, map[string]int{"epoch": 3}, 0o640); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if uid := int(info.Sys().(*syscall.Stat_t).Uid); uid != owner || info.Mode().Perm() != 0o640 {
			t.Errorf("it belongs to %d, mode %s; want %d, 0640", uid, info.Mode(), owner)
		}
	}
	v, err := Read[map[string]int](file)
	if err != nil || v["epoch"] != 3 {
		t.Errorf("%v, %v", v, err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("%v is left behind, %v", left, err)
	}
}
