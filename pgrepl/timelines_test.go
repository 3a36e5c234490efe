package pgrepl_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/pgrepl/pgtest"
)

// newTrio is an active node and two standbys that have all of its WAL.
func newTrio(t *testing.T, base string) (a, b, c *node) {
	t.Helper()
	ctx := ctxOf(t)
	ca := pgtest.NewCA(t)
	a = newPrimary(t, ca, "node-a", base+"1")
	must(t, a.EnsureSlots(ctx, "1", []string{"node-b", "node-c"}))
	b = newStandby(t, ca, "node-b", base+"2", a)
	c = newStandby(t, ca, "node-c", base+"3", a)
	a.sql(t, "create table notes (n int primary key, body text)")
	a.sql(t, "insert into notes select g, 'before' from generate_series(1, 100) g")
	end := a.Observe(ctx).Position.LSN
	for _, n := range []*node{b, c} {
		await(t, n.name+" has the rows", func() bool { return n.Observe(ctx).Replayed >= end })
	}
	return a, b, c
}

// rise makes an active node of a standby, leaving out timelines.
func (n *node) rise(t *testing.T, skip int, others ...string) cluster.Position {
	t.Helper()
	ctx := ctxOf(t)
	_, err := n.Detach(ctx)
	must(t, err)
	must(t, n.EnsureSlots(ctx, "1", others))
	must(t, n.SetQuorum(ctx, cluster.Quorum{}))
	must(t, n.SkipTimelines(ctx, skip))
	at, err := n.Promote(ctx)
	must(t, err)
	must(t, n.Gate(ctx, true))
	return at
}

// Two nodes fork from one position at the same time. The one that skips gets a
// timeline of its own, and either of them can come back to the other.
func TestSkipTimelines(t *testing.T) {
	t.Parallel()
	for name, minorityWins := range map[string]bool{"the majority wins": false, "the minority wins": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := ctxOf(t)
			base := map[bool]string{false: "127.62.1.1", true: "127.62.1.2"}[minorityWins]
			a, b, c := newTrio(t, base)
			a.Kill(t)
			pb := b.rise(t, 0, "node-a", "node-c")
			pc := c.rise(t, 2, "node-a", "node-b")
			if pb.LSN != pc.LSN || pb.Timeline+2 != pc.Timeline {
				t.Fatalf("b forked at %s and c at %s", pb, pc)
			}
			b.sql(t, "insert into notes values (1000, 'majority')")
			c.sql(t, "insert into notes values (2000, 'minority')")
			winner, loser, want := b, c, "1000"
			if minorityWins {
				winner, loser, want = c, b, "2000"
			}
			loser.Kill(t)
			must(t, loser.Rewind(ctx, winner.upstream(), nil))
			must(t, a.Rewind(ctx, winner.upstream(), nil))
			for _, n := range []*node{loser, a} {
				n.boot(t)
				n.awaitStreaming(t)
				await(t, n.name+" has the winner's rows alone", func() bool {
					return n.query(t, "select string_agg(n::text, ' ') from notes where n > 100") == want
				})
			}
			winner.sql(t, "insert into notes values (3000, 'after')")
			await(t, "both have the next row", func() bool {
				return a.query(t, "select max(n)::text from notes") == "3000" && loser.query(t, "select max(n)::text from notes") == "3000"
			})
		})
	}
}

// A standby that stayed behind follows an active node that has skipped, with a
// reload and with a restart.
func TestFollowSkipped(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b, c := newTrio(t, "127.62.1.3")
	a.Kill(t)
	_, err := b.Detach(ctx)
	must(t, err)
	at := c.rise(t, 3, "node-a", "node-b")
	c.sql(t, "insert into notes values (2000, 'minority')")
	must(t, b.Follow(ctx, c.upstream()))
	await(t, "b has the row", func() bool { return b.query(t, "select max(n)::text from notes") == "2000" })
	b.Stop(t)
	c.sql(t, "insert into notes values (2001, 'minority')")
	b.boot(t)
	await(t, "b has the next row", func() bool { return b.query(t, "select max(n)::text from notes") == "2001" })
	if got := b.Observe(ctx).Position.Timeline; got != at.Timeline {
		t.Errorf("b is on timeline %d, c on %d", got, at.Timeline)
	}
}

// PostgreSQL may take the last timeline that was skipped for an ancestor of the new
// one. A node that has made a timeline of a number below it, and has less WAL, stays
// on that; were it of that very number, it would stream on over the fork.
func TestForkBelowSkipped(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b, c := newTrio(t, "127.68.1.1")
	a.Kill(t)
	forked := b.rise(t, 1, "node-a", "node-c")
	must(t, b.KeepDivergence(ctx))
	c.rise(t, 0, "node-a", "node-b")
	b.sql(t, "insert into notes values (1000, 'one side')")
	c.sql(t, "insert into notes select g, repeat('other side', 1000) from generate_series(2000, 3000) g")
	for _, n := range []*node{b, c} {
		n.Stop(t)
		n.boot(t)
	}
	before, err := c.Detach(ctx)
	must(t, err)
	above := int(forked.Timeline - before.Timeline)
	must(t, c.SkipTimelines(ctx, above+1))
	await(t, "c is on its way to what it skips", func() bool { return strings.Contains(c.Log(t), "new target timeline is 5") })
	at := c.rise(t, above+1, "node-a", "node-b")
	history, err := c.History(ctx, at.Timeline)
	must(t, err)
	if parent := history[len(history)-1]; parent.Timeline != forked.Timeline+1 || at.Timeline != forked.Timeline+2 {
		t.Errorf("c is on %s by %v", at, history)
	}
	stays, err := b.Detach(ctx)
	must(t, err)
	if stays.Timeline != forked.Timeline || stays.LSN >= at.LSN {
		t.Fatalf("b forked at %s and is at %s, c at %s", forked, stays, at)
	}
	must(t, b.Follow(ctx, c.upstream()))
	await(t, "b refuses the timeline", func() bool { return strings.Contains(b.Log(t), "is not a child of database system timeline") })
	if got, err := b.Detach(ctx); err != nil || got != stays {
		t.Errorf("b was at %s and is at %s, %v", stays, got, err)
	}
	b.Stop(t)
	sum := b.export(t, forked, t.TempDir())
	if !sum.Complete || sum.Changes != 1 {
		t.Errorf("the export is %+v", sum)
	}
	must(t, b.Rewind(ctx, c.upstream(), nil))
	b.boot(t)
	await(t, "b has c's rows alone", func() bool { return b.query(t, "select count(*)::text from notes") == "1101" })
}

// A crash between the placeholders and the promotion changes nothing: the server
// starts, the same call goes through, and the promotion takes the number.
func TestRestartWhileSkipping(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b, c := newTrio(t, "127.62.1.4")
	a.Kill(t)
	before, err := c.Detach(ctx)
	must(t, err)
	must(t, c.SkipTimelines(ctx, 2))
	for _, end := range []func(testing.TB){c.Kill, c.Stop} {
		end(t)
		c.boot(t)
		at, err := c.Detach(ctx)
		must(t, err)
		if at != before {
			t.Fatalf("at %s after the restart and at %s before", at, before)
		}
	}
	at := c.rise(t, 2, "node-b")
	if at.Timeline != before.Timeline+3 || at.LSN != before.LSN {
		t.Errorf("promoted at %s, %s before", at, before)
	}
	c.sql(t, "insert into notes values (2000, 'minority')")
	must(t, b.Follow(ctx, c.upstream()))
	await(t, "b has the row", func() bool { return b.query(t, "select max(n)::text from notes") == "2000" })
	c.Stop(t)
	c.boot(t)
	if got := c.rise(t, 0); got.Timeline != at.Timeline+1 {
		t.Errorf("the next timeline is %d after %d", got.Timeline, at.Timeline)
	}
}

// A promotion that did not come leaves nothing behind: the standby follows
// whoever was promoted instead.
func TestUnskip(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b, c := newTrio(t, "127.62.1.5")
	a.Kill(t)
	_, err := c.Detach(ctx)
	must(t, err)
	must(t, c.SkipTimelines(ctx, 2))
	c.Stop(t) // it starts on its way to the skipped timelines
	c.boot(t)
	b.rise(t, 0, "node-c")
	b.sql(t, "insert into notes values (1000, 'majority')")
	if err := c.Follow(ctx, b.upstream()); !errors.Is(err, pgrepl.ErrNotRunning) {
		t.Fatalf("follow: %v", err)
	}
	await(t, "the server has ended", func() bool { return c.PID() == 0 })
	c.boot(t)
	must(t, c.Follow(ctx, b.upstream()))
	await(t, "c has the row", func() bool { return c.query(t, "select max(n)::text from notes") == "1000" })
	if err := b.SkipTimelines(ctx, 1); !errors.Is(err, pgrepl.ErrNotStandby) {
		t.Errorf("skip on a primary: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(c.Instance.DataDir, "pg_wal", "*.history"))
	must(t, err)
	if _, err := os.Stat(filepath.Join(c.Instance.DataDir, "pg_wal", "00000004.history")); err == nil {
		t.Errorf("histories left: %v", left)
	}
	dead, cancel := context.WithCancel(ctx)
	cancel()
	if err := c.SkipTimelines(dead, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("skip without time: %v", err)
	}
}
