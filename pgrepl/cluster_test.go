package pgrepl_test

import (
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/pgrepl/pgtest"
)

// TestFailover follows a cluster of three through the loss of its primary: the
// standbys detach, the better one is promoted, the other follows it without a
// restart, and the old primary is rewound and streams again.
func TestFailover(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	ca := pgtest.NewCA(t)
	a := newPrimary(t, ca, "node-a", "127.10.2.11")
	must(t, a.EnsureSlots(ctx, "1", []string{"node-b", "node-c"}))
	b := newStandby(t, ca, "node-b", "127.10.2.12", a)
	c := newStandby(t, ca, "node-c", "127.10.2.13", a)
	must(t, b.EnsureSlots(ctx, "1", []string{"node-a", "node-c"}))
	must(t, a.SetQuorum(ctx, cluster.Quorum{Members: []string{"node-b", "node-c"}, K: 1}))
	a.sql(t, "create table notes (n int primary key)")
	a.sql(t, "insert into notes select generate_series(1, 1000)")

	o := a.Observe(ctx)
	if o.State != pgrepl.StateUp || o.Primary != cluster.Yes || o.ReadOnly != cluster.No || o.Position.Timeline != 2 || len(o.Replicas) != 2 {
		t.Errorf("primary: %+v", o)
	}
	if o.Quorum == nil || !o.Quorum.Equal(cluster.Quorum{Members: []string{"node-b", "node-c"}, K: 1}) {
		t.Errorf("quorum in effect: %v", o.Quorum)
	}

	a.Kill(t)
	began := time.Now()
	atB, err := b.Detach(ctx)
	must(t, err)
	t.Logf("detached b in %v", time.Since(began))
	began = time.Now()
	atC, err := c.Detach(ctx)
	must(t, err)
	t.Logf("detached c in %v", time.Since(began))
	t.Logf("b is at %v, c at %v", atB, atC)
	best, other := b, c
	if atC.LSN > atB.LSN {
		best, other = c, b
	}

	began = time.Now()
	must(t, best.SetQuorum(ctx, cluster.Quorum{Members: []string{"node-a", other.name}, K: 1}))
	t.Logf("set quorum in %v", time.Since(began))
	must(t, best.EnsureSlots(ctx, "1", []string{"node-a", other.name}))
	began = time.Now()
	must(t, other.Follow(ctx, best.upstream()))
	t.Logf("follow took %v", time.Since(began))
	began = time.Now()
	fork, err := best.Promote(ctx)
	must(t, err)
	t.Logf("promoted in %v, fork at %v", time.Since(began), fork)
	best.sql(t, "insert into notes values (1001)")
	t.Logf("first synchronous commit %v after asking for the promotion", time.Since(began))
	if got := best.query(t, "select count(*)::text from notes"); got != "1001" {
		t.Errorf("%s rows after the failover", got)
	}
	if fork.Timeline != 3 {
		t.Errorf("new timeline %d", fork.Timeline)
	}
	must(t, best.Checkpoint(ctx))

	history, err := best.History(ctx, fork.Timeline)
	must(t, err)
	if !history.Contains(fork.Timeline, atC) || !history.Contains(fork.Timeline, atB) {
		t.Errorf("history %v does not contain the positions of the standbys", history)
	}

	began = time.Now()
	must(t, a.Rewind(ctx, best.upstream(), nil))
	t.Logf("rewound in %v", time.Since(began))
	a.boot(t)
	a.awaitStreaming(t)
	best.sql(t, "insert into notes values (1002)")
	await(t, "the old primary has the row", func() bool { return a.query(t, "select count(*)::text from notes") == "1002" })
	if !a.Complete() {
		t.Error("a rewound data directory is not complete")
	}
}
