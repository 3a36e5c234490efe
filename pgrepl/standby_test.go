package pgrepl_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/pgrepl/pgtest"
)

// TestDetach: a standby that was told to receive no more does not, while the
// primary lives and writes, nor after a restart; and what it said is where it is.
func TestDetach(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b := newPair(t, "127.10.2.11", "127.10.2.12")
	a.sql(t, "create table notes (n int)")
	stop := writer(t, a)

	began := time.Now()
	at, err := b.Detach(ctx)
	must(t, err)
	t.Logf("detached from a primary that writes in %v", time.Since(began))
	end := a.Observe(ctx).Position.LSN
	await(t, "the primary has written more", func() bool { return a.Observe(ctx).Position.LSN > end+1000 })
	conf := filepath.Join(filepath.Dir(b.ConfigFile), "conf.d", "understudy-dynamic.conf")
	before, err := os.ReadFile(conf)
	must(t, err)
	if again, err := b.Detach(ctx); err != nil || again != at {
		t.Errorf("first at %v, then at %v: %v", at, again, err)
	}
	if after, err := os.ReadFile(conf); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a standby that is detached is told so again: %s, %v", after, err)
	}
	o := b.Observe(ctx)
	if o.Position != at || o.Receiver != "" || o.Upstream != "" || o.Ahead != nil {
		t.Errorf("after the detach: %+v", o)
	}

	b.Instance.Stop(t)
	b.boot(t)
	if again, err := b.Detach(ctx); err != nil || again.Timeline != at.Timeline || again.LSN > at.LSN || o.Replayed > again.LSN {
		t.Errorf("after a restart at %v instead of %v: %v", again, at, err)
	}
	must(t, b.Follow(ctx, a.upstream()))
	b.awaitStreaming(t)
	if ahead := b.Observe(ctx).Ahead; ahead == nil || ahead.Abs() > time.Minute {
		t.Errorf("on one machine the upstream's clock is before by %v", ahead)
	}
	stop()
	end = a.Observe(ctx).Position.LSN
	await(t, "the standby has caught up", func() bool { return b.Observe(ctx).Position.LSN >= end })
}

// TestDetachWhileReplayIsHeldUp: what was received counts, though it is not
// replayed yet.
func TestDetachWhileReplayIsHeldUp(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b := newPair(t, "127.10.2.11", "127.10.2.12")
	must(t, a.SetQuorum(ctx, cluster.Quorum{Members: []string{"node-b"}, K: 1}))
	b.sql(t, "select pg_wal_replay_pause()")
	await(t, "the replay is paused", func() bool { return b.query(t, "select pg_get_wal_replay_pause_state()") == "paused" })
	a.sql(t, "create table notes (n int)") // acknowledged by the standby
	acknowledged := a.Observe(ctx).Position.LSN
	at, err := b.Detach(ctx)
	must(t, err)
	if at.LSN < acknowledged {
		t.Errorf("final position %v is before %v, which the standby has acknowledged", at, acknowledged)
	}
	if replayed := b.Observe(ctx).Replayed; replayed >= acknowledged {
		t.Errorf("replayed to %v in spite of the pause", replayed)
	}
}

// writer writes rows until it is stopped.
func writer(t *testing.T, n *node) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c, err := pgx.Connect(ctx, n.DSN())
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer c.Close(context.Background())
		for ctx.Err() == nil {
			if _, err := c.Exec(ctx, "insert into notes values (1)"); err != nil {
				return
			}
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// TestStoppedStandby: what can be done without a server is done.
func TestStoppedStandby(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b := newPair(t, "127.10.2.11", "127.10.2.12")
	b.Instance.Stop(t)
	if _, err := b.Detach(ctx); !errors.Is(err, pgrepl.ErrNotRunning) {
		t.Errorf("detach: %v", err)
	}
	if err := b.SetQuorum(ctx, cluster.Quorum{}); !errors.Is(err, pgrepl.ErrNotRunning) {
		t.Errorf("set quorum: %v", err)
	}
	b.boot(t)
	if o := b.Observe(ctx); o.Upstream != "" || o.Receiver != "" || o.Quorum.K != 0 {
		t.Errorf("booted as %+v", o)
	}
	b.Instance.Stop(t)
	if err := b.Follow(ctx, a.upstream()); !errors.Is(err, pgrepl.ErrNotRunning) {
		t.Errorf("follow: %v", err)
	}
	b.boot(t)
	b.awaitStreaming(t)
	if err := a.Follow(ctx, b.upstream()); !errors.Is(err, pgrepl.ErrNotStandby) {
		t.Errorf("a primary follows: %v", err)
	}
	if _, err := a.Detach(ctx); !errors.Is(err, pgrepl.ErrNotStandby) {
		t.Errorf("a primary detaches: %v", err)
	}
	if o := a.Observe(ctx); o.Quorum.K != 0 {
		t.Errorf("the refused follow changed the quorum of the primary to %v", o.Quorum)
	}
}

// TestCascadeContinues: a standby of a standby confirms commits on
// the new timeline right after that was promoted.
func TestCascadeContinues(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	ca := pgtest.NewCA(t)
	a := newPrimary(t, ca, "node-a", "127.10.2.11")
	must(t, a.EnsureSlots(ctx, "1", []string{"node-b", "node-c"}))
	b := newStandby(t, ca, "node-b", "127.10.2.12", a)
	must(t, b.EnsureSlots(ctx, "1", []string{"node-c"}))
	c := newStandby(t, ca, "node-c", "127.10.2.13", b) // cloned from a standby
	b.awaitReplica(t, "node-c")
	a.Kill(t)
	_, err := b.Detach(ctx)
	must(t, err)
	must(t, b.SetQuorum(ctx, cluster.Quorum{Members: []string{"node-c"}, K: 1}))
	_, err = b.Promote(ctx)
	must(t, err)
	began := time.Now()
	b.sql(t, "create table notes (n int)")
	t.Logf("synchronous commit %v after the promotion", time.Since(began))
	if o := c.Observe(ctx); o.Position.Timeline != 3 {
		await(t, "the cascade is on timeline 3", func() bool { return c.Observe(ctx).Position.Timeline == 3 })
	}
}

// TestHandOver: after a fast shutdown of the primary its standby has everything,
// the checkpoint at the end included, and the old primary follows without rewind.
func TestHandOver(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b := newPair(t, "127.10.2.11", "127.10.2.12")
	must(t, b.EnsureSlots(ctx, "1", []string{"node-a"}))
	a.sql(t, "create table notes (n int)")
	writer(t, a)
	began := time.Now()
	must(t, a.Checkpoint(ctx))
	t.Logf("checkpoint %v", time.Since(began))
	must(t, a.Gate(ctx, false))
	began = time.Now()
	a.Instance.Stop(t)
	t.Logf("fast stop %v", time.Since(began))
	control, err := a.ControlData(ctx)
	must(t, err)
	if control.State != "shut down" {
		t.Errorf("the primary is %q", control.State)
	}
	at, err := b.Detach(ctx)
	must(t, err)
	if at.LSN <= control.Checkpoint {
		t.Errorf("the standby is at %v and lacks the final checkpoint at %v", at, control.Checkpoint)
	}
	must(t, b.SetQuorum(ctx, cluster.Quorum{}))
	began = time.Now()
	fork, err := b.Promote(ctx)
	must(t, err)
	t.Logf("promote %v", time.Since(began))
	history, err := b.History(ctx, fork.Timeline)
	must(t, err)
	if !history.Contains(fork.Timeline, cluster.Position{Timeline: control.Timeline, LSN: control.Checkpoint}) {
		t.Errorf("%v does not contain the final checkpoint %v", history, control.Checkpoint)
	}
	if err := a.Follow(ctx, b.upstream()); !errors.Is(err, pgrepl.ErrNotRunning) {
		t.Errorf("follow: %v", err)
	}
	a.boot(t)
	a.awaitStreaming(t)
	if again, err := b.Promote(ctx); err != nil || again != fork {
		t.Errorf("promoting a primary gave %v instead of %v: %v", again, fork, err)
	}
}

// TestPromoteEndsSessionsThatHoldUpReplay: a query on the standby may delay the
// replay for max_standby_streaming_delay, by default 30 s, and with it a promotion.
func TestPromoteEndsSessionsThatHoldUpReplay(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b := newPair(t, "127.10.2.11", "127.10.2.12")
	a.sql(t, "create table notes (n int)")
	end := a.Observe(ctx).Position.LSN
	await(t, "the standby has the table", func() bool { return b.Observe(ctx).Replayed >= end })
	reader, err := pgx.Connect(ctx, b.DSN())
	must(t, err)
	defer reader.Close(ctx)
	_, err = reader.Exec(ctx, "begin; lock table notes in access share mode")
	must(t, err)
	a.sql(t, "drop table notes")
	await(t, "the replay waits for the lock", func() bool {
		return b.query(t, "select count(*)::text from pg_stat_activity where backend_type = 'startup' and wait_event_type = 'Lock'") == "1"
	})
	_, err = b.Detach(ctx)
	must(t, err)
	must(t, b.SetQuorum(ctx, cluster.Quorum{}))
	began := time.Now()
	_, err = b.Promote(ctx)
	must(t, err)
	t.Logf("promoted in %v", time.Since(began))
	if _, err := reader.Exec(ctx, "select 1"); err == nil {
		t.Error("the session that held up the replay lives")
	}
}

// TestUnsetQuorumLocksCommits: a server that was promoted before it was told
// whom to wait for acknowledges nothing.
func TestUnsetQuorumLocksCommits(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b := newPair(t, "127.10.2.11", "127.10.2.12")
	a.Kill(t)
	_, err := b.Detach(ctx)
	must(t, err)
	_, err = b.Promote(ctx)
	must(t, err)
	done := make(chan error, 1)
	go func() {
		c, err := pgx.Connect(ctx, b.DSN())
		if err == nil {
			defer c.Close(ctx)
			_, err = c.Exec(ctx, "create table notes (n int)")
		}
		done <- err
	}()
	await(t, "the commit waits", func() bool {
		return b.query(t, "select count(*)::text from pg_stat_activity where wait_event = 'SyncRep'") == "1"
	})
	must(t, b.SetQuorum(ctx, cluster.Quorum{}))
	must(t, <-done)
}

// TestForkedStandbyIsBelieved shows what handler-runner must not let happen, on real
// servers: PostgreSQL lets a standby in that has forked, and if commits wait for that
// one, then from then on no commit is waited for up to where the other's own WAL ends.
func TestForkedStandbyIsBelieved(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b := newPair(t, "127.10.9.41", "127.10.9.42")
	a.sql(t, "create table notes as select generate_series(1, 1000) n")
	end := a.Observe(ctx).Position.LSN
	await(t, "the standby has the rows", func() bool { return b.Observe(ctx).Replayed >= end })
	_, err := b.Detach(ctx)
	must(t, err)
	a.sql(t, "insert into notes select generate_series(1, 20000)")
	must(t, b.EnsureSlots(ctx, "1", []string{"node-a"}))
	must(t, b.SetQuorum(ctx, cluster.Quorum{Members: []string{"node-a"}, K: 1}))
	_, err = b.Promote(ctx)
	must(t, err)
	a.Instance.Stop(t)
	a.boot(t)

	must(t, a.Follow(ctx, b.upstream()))
	await(t, "the forked standby is heard", func() bool {
		return strings.Contains(b.Log(t), `standby "node-a" is now a candidate for quorum synchronous standby`)
	})
	must(t, b.Gate(ctx, true))
	a.Instance.Stop(t)
	b.sql(t, "insert into notes values (0)") // waits for nobody
	if o := b.Observe(ctx); len(o.Replicas) != 0 || o.Quorum.K != 1 {
		t.Errorf("committed with the standbys %v and the quorum %v", o.Replicas, o.Quorum)
	}
}
