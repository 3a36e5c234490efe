package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fullDisk joins node4, whose database lies on a disk that is too small for a
// second copy beside it. Only root can make such a disk.
func fullDisk(t *testing.T, g *group) {
	if os.Geteuid() != 0 {
		t.Log("not root: the check of the free space is left to the tests of pgrepl")
		return
	}
	n := g.node(t, "node4")
	parent := filepath.Dir(n.Postgres.DataDir)
	g.must(t, "kill", "node4")
	if err := os.Rename(parent, parent+".moved"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", parent, "tmpfs", 0, "size=200m,mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.must(t, "kill", "node4")
		if err := syscall.Unmount(parent, 0); err != nil {
			t.Error(err)
		}
	})
	for _, command := range [][]string{{"cp", "-a", parent + ".moved/.", parent}, {"rm", "-r", parent + ".moved"}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", command, err, out)
		}
	}
	g.must(t, "start", "node4")
	args := g.joinArgs(t, "node4", g.token(t, "node1"), "node1")
	want(t, g.cluster(t, "node4", args...), 1, "clone the database", "not enough disk space", "are needed at "+parent, "repeat the same command")
	g.without(t, "node1", "node4")
	t.Run("in the middle of the clone", func(t *testing.T) { fillsInClone(t, g, n.Postgres.DataDir, args) })
	resize(t, parent, "2g")
	want(t, g.cluster(t, "node4", args...), 0, "node4 is a standby of cluster")
	g.healthy(t, "node4", 3)
}

// resize gives a tmpfs another size.
func resize(t *testing.T, dir, size string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size="+size); err != nil {
		t.Fatal(err)
	}
}

// fillsInClone joins with enough space at first, which is gone when the copy has
// begun. The database that was there before is as it was, and nothing is left of
// the copy.
func fillsInClone(t *testing.T, g *group, dataDir string, args []string) {
	sql(t, g.node(t, "node1"), "create table bulk as select n, repeat(md5(n::text), 30) as text from generate_series(1, 200000) n")
	parent := filepath.Dir(dataDir)
	resize(t, parent, "2g")
	control, err := os.ReadFile(filepath.Join(dataDir, "global/pg_control"))
	if err != nil {
		t.Fatal(err)
	}
	joined := make(chan result, 1)
	go func() { joined <- g.cluster(t, "node4", args...) }()
	var base string
	for len(joined) == 0 && base == "" {
		found, _ := filepath.Glob(dataDir + ".clone/base/*")
		base = strings.Join(found, " ")
		time.Sleep(time.Millisecond)
	}
	// Whoever else is on the disk takes what is free, but for a little.
	for err = syscall.EINVAL; errors.Is(err, syscall.EINVAL); {
		var fs syscall.Statfs_t
		if err = syscall.Statfs(parent, &fs); err == nil {
			used := int64(fs.Blocks-fs.Bfree) * fs.Bsize
			err = syscall.Mount("tmpfs", parent, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", used+4<<20))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	want(t, <-joined, 1, "clone the database", "not enough disk space", "No space left on device", "are needed at "+parent,
		"the present data directory is kept", "repeat the same command")
	if left, _ := filepath.Glob(dataDir + ".*"); len(left) > 0 && !slices.Equal(left, []string{dataDir + ".lock"}) {
		t.Errorf("%v is left", left)
	}
	if now, err := os.ReadFile(filepath.Join(dataDir, "global/pg_control")); err != nil || !bytes.Equal(now, control) {
		t.Errorf("the data directory is not what it was: %v", err)
	}
	g.without(t, "node1", "node4")
}
