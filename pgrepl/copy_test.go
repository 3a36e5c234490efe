package pgrepl_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/pgrepl/pgtest"
)

func glob(t *testing.T, n *node, suffix string) []string {
	t.Helper()
	found, err := filepath.Glob(n.Instance.DataDir + suffix)
	must(t, err)
	return found
}

// TestCloneKeepsWhatWasThere: a clone that is cancelled, or that fails, leaves
// the data directory; one that succeeds keeps the two before it.
func TestCloneKeepsWhatWasThere(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	ca := pgtest.NewCA(t)
	a := newPrimary(t, ca, "node-a", "127.10.2.11")
	a.sql(t, "create table notes as select generate_series(1, 200000) n")
	b := newNode(t, ca, "node-b", "127.10.2.12", pgtest.Fresh)
	before, err := b.ControlData(ctx)
	must(t, err)

	if err := b.Clone(ctx, a.upstream(), nil); err == nil || !strings.Contains(err.Error(), "understudy_1_node_b") {
		t.Errorf("clone without a slot: %v", err)
	}
	must(t, a.EnsureSlots(ctx, "1", []string{"node-b"}))
	wrong := a.upstream()
	wrong.SystemID = "1"
	if err := b.Clone(ctx, wrong, nil); !errors.Is(err, pgrepl.ErrForeign) {
		t.Errorf("clone of another cluster: %v", err)
	}
	stopped, cancel := context.WithCancel(ctx)
	copying := false
	err = b.Clone(stopped, a.upstream(), func(line string) {
		copying = copying || strings.HasPrefix(line, "copying")
		if strings.Contains(line, "kB") {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || !copying {
		t.Errorf("cancelled clone: %v", err)
	}
	if after, err := b.ControlData(ctx); err != nil || after.SystemID != before.SystemID || b.Complete() {
		t.Errorf("a clone that failed changed the data directory: %v %v", after, err)
	}
	must(t, os.MkdirAll(b.Instance.DataDir+".clone/left", 0o700)) // by a process that was killed

	for range 4 {
		must(t, b.Clone(ctx, a.upstream(), nil))
		if !b.Complete() {
			t.Fatal("the clone is not complete")
		}
		await(t, "the slot is free", func() bool {
			return a.query(t, "select active::text from pg_replication_slots where slot_name = 'understudy_1_node_b'") == "false"
		})
	}
	if old := glob(t, b, ".old-*"); len(old) != 2 {
		t.Errorf("earlier directories: %v", old)
	}
	if left := glob(t, b, ".clone"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	b.boot(t)
	if err := b.Clone(ctx, a.upstream(), nil); !errors.Is(err, pgrepl.ErrRunning) {
		t.Errorf("clone over a running server: %v", err)
	}
}

// TestFirstCloneKeepsTheOldData: what the node held before it joined is there
// under its new name.
func TestFirstCloneKeepsTheOldData(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	ca := pgtest.NewCA(t)
	a := newPrimary(t, ca, "node-a", "127.10.2.11")
	must(t, a.EnsureSlots(ctx, "1", []string{"node-b"}))
	b := newNode(t, ca, "node-b", "127.10.2.12", pgtest.Fresh)
	before, err := b.ControlData(ctx)
	must(t, err)
	must(t, b.Clone(ctx, a.upstream(), nil))
	old := glob(t, b, ".old-*")
	if len(old) != 1 {
		t.Fatalf("earlier directories: %v", old)
	}
	out, err := exec.Command(filepath.Join(pgtest.BinDir, "pg_controldata"), old[0]).Output()
	must(t, err)
	if !strings.Contains(string(out), before.SystemID) {
		t.Errorf("%s is not what was there before:\n%s", old[0], out)
	}
}

// TestNoSpaceIsKnownBeforehand: a clone that cannot fit is not begun.
func TestNoSpaceIsKnownBeforehand(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	ca := pgtest.NewCA(t)
	a := newPrimary(t, ca, "node-a", "127.10.2.11")
	must(t, a.EnsureSlots(ctx, "1", []string{"node-b"}))
	// A file with a hole counts for the size of the database and takes no space.
	oid := a.query(t, "select oid::text from pg_database where datname = 'postgres'")
	hole, err := os.Create(filepath.Join(a.Instance.DataDir, "base", oid, "hole"))
	must(t, err)
	must(t, errors.Join(hole.Truncate(8<<40), hole.Close()))
	b := newNode(t, ca, "node-b", "127.10.2.12")
	err = b.Clone(ctx, a.upstream(), nil)
	if !errors.Is(err, pgrepl.ErrNoSpace) || !strings.Contains(err.Error(), "MB are needed") || !strings.Contains(err.Error(), "MB are free") {
		t.Errorf("clone of 8 TB: %v", err)
	}
	if _, err := b.ControlData(ctx); err != nil {
		t.Errorf("the data directory: %v", err)
	}
}

// TestDiskFillsUp: a clone during which the disk fills up says what it needs and
// loses nothing. Only root can mount a small disk; what an ordinary user can
// see of it is in TestCopyError.
func TestDiskFillsUp(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return
	}
	ctx := ctxOf(t)
	ca := pgtest.NewCA(t)
	a := newPrimary(t, ca, "node-a", "127.10.2.11")
	must(t, a.EnsureSlots(ctx, "1", []string{"node-b"}))
	b := newNode(t, ca, "node-b", "127.10.2.12")
	parent, kept := filepath.Dir(b.Instance.DataDir), b.Instance.Root+"/kept"
	must(t, os.Rename(b.Instance.DataDir, kept))
	must(t, syscall.Mount("tmpfs", parent, "tmpfs", 0, "size=450m,mode=0755"))
	t.Cleanup(func() { syscall.Unmount(parent, syscall.MNT_DETACH) })
	if out, err := exec.Command("cp", "-a", kept, b.Instance.DataDir).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v: %s", err, out)
	}
	filled := false
	err := b.Clone(ctx, a.upstream(), func(string) {
		if !filled {
			filled = true
			out, err := exec.Command("dd", "if=/dev/zero", "of="+parent+"/other", "bs=1M").CombinedOutput()
			if err == nil {
				t.Errorf("the disk did not fill up: %s", out)
			}
		}
	})
	if !errors.Is(err, pgrepl.ErrNoSpace) || !strings.Contains(err.Error(), "MB are needed") {
		t.Errorf("clone on a full disk: %v", err)
	}
	if _, err := b.ControlData(ctx); err != nil || len(glob(t, b, ".clone")) > 0 {
		t.Errorf("the data directory: %v; left: %v", err, glob(t, b, ".clone"))
	}
}

// TestOneCloneAtATime: two processes never write to one data directory.
func TestOneCloneAtATime(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	ca := pgtest.NewCA(t)
	a := newPrimary(t, ca, "node-a", "127.10.2.11")
	must(t, a.EnsureSlots(ctx, "1", []string{"node-b"}))
	b := newNode(t, ca, "node-b", "127.10.2.12")
	other, err := pgrepl.New(configOf(b.Instance, "node-b"))
	must(t, err)
	var second error
	must(t, b.Clone(ctx, a.upstream(), func(string) {
		if second == nil {
			second = other.Clone(ctx, a.upstream(), nil)
		}
	}))
	if !errors.Is(second, pgrepl.ErrBusy) {
		t.Errorf("a second clone: %v", second)
	}
}

// TestStandbyGetsTheLimitsOfItsPrimary: a standby with a lower max_connections
// would refuse to start.
func TestStandbyGetsTheLimitsOfItsPrimary(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	ca := pgtest.NewCA(t)
	a := bareNode(t, ca, "node-a", "127.10.2.11")
	f, err := os.OpenFile(a.Instance.ConfigFile, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("max_connections = 150\n")
	must(t, errors.Join(err, f.Close()))
	activate(t, a)
	must(t, a.EnsureSlots(ctx, "1", []string{"node-b"}))
	b := newStandby(t, ca, "node-b", "127.10.2.12", a)
	if got := b.query(t, "show max_connections"); got != "150" {
		t.Errorf("max_connections %s", got)
	}
	must(t, b.Prepare(ctx)) // again
	b.Instance.Stop(t)
	b.boot(t)
	if got := b.query(t, "show max_connections"); got != "150" {
		t.Errorf("max_connections %s after the second Prepare", got)
	}
}

// TestUnfinishedRewindNeverStarts: the directory is marked from before the first
// change, and a clone heals it.
func TestUnfinishedRewindNeverStarts(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b := newPair(t, "127.10.2.11", "127.10.2.12")
	must(t, b.EnsureSlots(ctx, "1", []string{"node-a"}))
	a.sql(t, "create table notes as select generate_series(1, 100000) n")
	end := a.Observe(ctx).Position.LSN
	await(t, "the standby has the rows", func() bool { return b.Observe(ctx).Replayed >= end })
	_, err := b.Detach(ctx)
	must(t, err)
	a.sql(t, "insert into notes select generate_series(1, 100000)") // lost with the old timeline
	must(t, b.SetQuorum(ctx, cluster.Quorum{}))
	fork, err := b.Promote(ctx)
	must(t, err)
	at := a.Observe(ctx).Position
	history, err := b.History(ctx, fork.Timeline)
	must(t, err)
	if history.Contains(fork.Timeline, at) {
		t.Fatalf("%v is not seen as diverged from %v", at, history)
	}
	if err := a.Rewind(ctx, b.upstream(), nil); !errors.Is(err, pgrepl.ErrRunning) {
		t.Errorf("rewind of a running server: %v", err)
	}
	a.Kill(t)

	stopped, cancel := context.WithCancel(ctx)
	if err := a.Rewind(stopped, b.upstream(), func(string) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted rewind: %v", err)
	}
	if err := pgrepl.PrepareBoot(a.Instance.DataDir); !errors.Is(err, pgrepl.ErrRewinding) {
		t.Errorf("boot after an interrupted rewind: %v", err)
	}
	if _, err := os.Stat(a.Instance.DataDir + ".rewinding"); err != nil {
		t.Errorf("the unit's guard sees nothing: %v", err)
	}
	if a.Complete() {
		t.Error("a half rewound directory is complete")
	}
	if err := a.Rewind(ctx, b.upstream(), nil); !errors.Is(err, pgrepl.ErrRewinding) {
		t.Errorf("second rewind: %v", err)
	}
	must(t, a.Clone(ctx, b.upstream(), nil))
	a.boot(t)
	a.awaitStreaming(t)
	if got := b.query(t, "select count(*)::text from notes"); got != "100000" {
		t.Errorf("%s rows", got)
	}
}

// TestRewindOfDivergedPrimary: an old primary that was killed with commits that
// nobody else had comes back without them.
func TestRewindOfDivergedPrimary(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b := newPair(t, "127.10.2.11", "127.10.2.12")
	must(t, b.EnsureSlots(ctx, "1", []string{"node-a"}))
	a.sql(t, "create table notes as select generate_series(1, 1000) n")
	end := a.Observe(ctx).Position.LSN
	await(t, "the standby has the rows", func() bool { return b.Observe(ctx).Replayed >= end })
	_, err := b.Detach(ctx)
	must(t, err)
	a.sql(t, "update notes set n = -n")
	must(t, b.SetQuorum(ctx, cluster.Quorum{}))
	_, err = b.Promote(ctx)
	must(t, err)
	must(t, b.Gate(ctx, true))
	b.sql(t, "insert into notes values (1001)")
	b.sql(t, "alter role understudy_replica set statement_timeout = '1ms'") // what holds for a role holds not for a rewind
	a.Kill(t)
	must(t, a.Rewind(ctx, b.upstream(), nil)) // takes the checkpoint on b that it needs
	a.boot(t)
	a.awaitStreaming(t)
	await(t, "the old primary has the rows of the new one", func() bool {
		return a.query(t, "select count(*) || ' ' || min(n) from notes") == "1001 1"
	})
	if !a.Complete() {
		t.Error("a rewound directory is not complete")
	}
}

// TestRewindArchivesFirst: what the old primary had not archived yet is archived before
// pg_rewind deletes it, and kept beside where the archive does not take it.
func TestRewindArchivesFirst(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		address, archive string
	}{
		"the archive takes it":  {"127.10.9.1", "cp %p ARCHIVE/%f && echo 100%% >&2"},
		"the archive is broken": {"127.10.9.2", "false"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := ctxOf(t)
			ca := pgtest.NewCA(t)
			a := bareNode(t, ca, "node-a", c.address+"1")
			archive := filepath.Join(filepath.Dir(a.Instance.DataDir), "archive")
			must(t, os.Mkdir(archive, 0o755))
			must(t, os.Chmod(archive, 0o777))
			broken := filepath.Join(filepath.Dir(a.ConfigFile), "conf.d", "archive.conf")
			must(t, os.WriteFile(broken, []byte("archive_mode = on\narchive_command = 'false'\n"), 0o644))
			activate(t, a)
			must(t, a.EnsureSlots(ctx, "1", []string{"node-b"}))
			b := newStandby(t, ca, "node-b", c.address+"2", a)
			a.sql(t, "create table notes as select generate_series(1, 1000) n")
			a.sql(t, "select pg_switch_wal()")
			segment := a.query(t, "select pg_walfile_name(pg_current_wal_lsn() - 1)")
			a.sql(t, "insert into notes values (0)")
			end := a.Observe(ctx).Position.LSN
			await(t, "the standby has the rows", func() bool { return b.Observe(ctx).Replayed >= end })
			_, err := b.Detach(ctx)
			must(t, err)
			must(t, b.SetQuorum(ctx, cluster.Quorum{}))
			_, err = b.Promote(ctx)
			must(t, err)
			must(t, b.Gate(ctx, true))
			a.sql(t, "update notes set n = -n")
			a.Kill(t)
			finished, err := os.ReadFile(filepath.Join(a.Instance.DataDir, "pg_wal", segment))
			must(t, err)
			must(t, os.WriteFile(broken, []byte("archive_mode = on\narchive_command = '"+strings.ReplaceAll(c.archive, "ARCHIVE", archive)+"'\n"), 0o644))
			must(t, a.Rewind(ctx, b.upstream(), nil))
			where := archive
			if c.archive == "false" {
				where = a.Instance.DataDir + ".unarchived"
			}
			if got, err := os.ReadFile(filepath.Join(where, segment)); err != nil || !bytes.Equal(got, finished) {
				t.Errorf("%s is not in %s as it was: %d bytes, %v", segment, where, len(got), err)
			}
			a.boot(t)
			a.awaitStreaming(t)
		})
	}
}

// TestForeignCertificate: only a node of the cluster's CA may replicate.
func TestForeignCertificate(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a := newPrimary(t, pgtest.NewCA(t), "node-a", "127.10.2.11")
	must(t, a.EnsureSlots(ctx, "1", []string{"node-b"}))
	b := newNode(t, pgtest.NewCA(t), "node-b", "127.10.2.12")
	if err := b.Clone(ctx, a.upstream(), nil); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("clone with a foreign certificate: %v", err)
	}
}
