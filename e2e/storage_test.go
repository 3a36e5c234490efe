package e2e

import (
	"context"
	"encoding/json"
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

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/dev/rig"
)

// TestStorage gives a node a disk of its own, makes the node active, and lets the
// disk fill up, and hang. Only root can make disks.
func TestStorage(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Log("not root: the check of the disk is left to the tests of checkrunner")
		return
	}
	g := up(t, "s", "127.65.1.11", 3)
	before := g.healthy(t, "node1", 3)
	node := before.Standbys()[1]
	disk := g.ownDisk(t, node)
	g.healthy(t, "node1", 3)
	for _, story := range []struct {
		name string
		tell func(*testing.T, *group, string, string)
	}{
		{"the disk of the active fills up", diskFills},
		{"the disk of the active hangs", diskHangs},
	} {
		want(t, g.cluster(t, "node1", "set-active", node), 0, node+" is the active node")
		g.healthy(t, "node1", 3)
		if !t.Run(story.name, func(t *testing.T) { story.tell(t, g, node, disk) }) {
			return
		}
	}
}

// run runs a command of the machine.
func run(t *testing.T, argv ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
}

// ownDisk moves the database of a node to a file system of its own, of 700 MB, and
// returns where that is mounted.
func (g *group) ownDisk(t *testing.T, node string) string {
	t.Helper()
	image, disk := filepath.Join(scratch, "disk-"+node), filepath.Dir(g.node(t, node).Postgres.DataDir)
	g.must(t, "kill", node)
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 700<<20); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", "-m", "0", image)
	if err := os.Rename(disk, disk+".moved"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-o", "loop", image, disk)
	t.Cleanup(func() {
		g.must(t, "kill", node)
		run(t, "umount", disk)
		if err := os.Remove(image); err != nil {
			t.Error(err)
		}
	})
	run(t, "cp", "-a", disk+".moved/.", disk)
	run(t, "rm", "-r", disk+".moved")
	g.must(t, "start", node)
	return disk
}

// storageFails waits until nodes get says of a node's disk what it should.
func (g *group) storageFails(t *testing.T, from, node, says string) {
	t.Helper()
	eventually(t, "the storage check of "+node+" fails", func() error {
		n := ask[struct {
			Checks  map[string]string `json:"checks"`
			Outputs map[string]struct {
				OK     bool   `json:"ok"`
				Output string `json:"output"`
			} `json:"check_outputs"`
		}](t, g, from, "nodes", "get", node)
		if c := n.Outputs["storage"]; c.OK || !strings.Contains(c.Output, says) || n.Checks["database"] != "FAIL" {
			return fmt.Errorf("%+v", n)
		}
		return nil
	})
}

// diskFills leaves not a byte on the disk of the active, and lets PostgreSQL ask
// for new WAL segments. Whatever is quicker, the check or PostgreSQL's PANIC,
// another node takes over; the full one comes back by itself when there is room.
func diskFills(t *testing.T, g *group, node, disk string) {
	before := g.healthy(t, "node1", 3)
	from := before.Standbys()[0]
	filler := filepath.Join(disk, "filler")
	after := g.underWrites(t, func() {
		fill(t, filler)
		switchWAL(t, g.node(t, node))
		g.epochAfter(t, before)
		g.storageFails(t, from, node, "")
		if r := g.cluster(t, from, "set-active", node, "--timeout", "20s"); r.code != 1 {
			t.Errorf("a node with a full disk is made active: %v", r)
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
	})
	if after.Active == node || after.Epoch != before.Epoch+1 {
		t.Errorf("%s is active in epoch %d, which was %d", after.Active, after.Epoch, before.Epoch)
	}
}

// fill makes a file that takes all the space there is.
func fill(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := make([]byte, 1<<20); err == nil; {
		_, err = f.Write(chunk)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// switchWAL has PostgreSQL begin one WAL segment after the other until it cannot.
func switchWAL(t *testing.T, n dev.NodeInfo) {
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	conn, err := pgx.Connect(ctx, n.Postgres.DSN+"?sslmode=disable")
	for range 200 {
		if err != nil {
			t.Logf("PostgreSQL says: %v", err)
			return
		}
		_, err = conn.Exec(ctx, "select pg_logical_emit_message(false, 'test', 'x'), pg_switch_wal()")
	}
	t.Error("PostgreSQL goes on without space for WAL")
}

// diskHangs freezes the file system: whoever writes to it waits, and cannot even
// be killed. The other nodes go on, and the hung one follows them when its disk
// works again.
func diskHangs(t *testing.T, g *group, node, disk string) {
	before := g.healthy(t, "node1", 3)
	t.Cleanup(func() { _ = exec.Command("fsfreeze", "--unfreeze", disk).Run() }) // fails where it is thawed
	var took time.Duration
	after := g.underWrites(t, func() {
		run(t, "fsfreeze", "--freeze", disk)
		began := time.Now()
		g.epochAfter(t, before)
		took = time.Since(began)
		g.storageFails(t, before.Standbys()[0], node, "hangs")
		s := g.statusOf(t, before.Standbys()[0])
		if i := slices.IndexFunc(s.Nodes, func(n rig.NodeStatus) bool { return n.Name == node }); s.Nodes[i].State == "leader" {
			t.Errorf("%s still takes itself for active", node)
		}
		run(t, "fsfreeze", "--unfreeze", disk)
	})
	t.Logf("another node was active after %s", took.Round(100*time.Millisecond))
	if after.Active == node || after.Epoch != before.Epoch+1 {
		t.Errorf("%s is active in epoch %d, which was %d", after.Active, after.Epoch, before.Epoch)
	}
}

// tryStatus is cluster status as a node tells it, if it does.
func (g *group) tryStatus(t *testing.T, from string) (s rig.Status, r result) {
	t.Helper()
	r = g.cluster(t, from, "status", "--json")
	_ = json.Unmarshal([]byte(r.out), &s) // what is missing shows
	return s, r
}

// statusOf is cluster status as a node tells it, and the test ends where none is active.
func (g *group) statusOf(t *testing.T, from string) rig.Status {
	t.Helper()
	return ask[rig.Status](t, g, from, "status")
}
