package pgrepl_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/pgrepl/divergence"
	"github.com/understudy-ha/understudy/pgrepl/pgtest"
)

const prologue = `create table keyed (id int primary key, body text, big text, n numeric, tags text[], ok bool, at timestamptz);
	create table bare (x int, "We ird]:" text);
	create table untouched (id int primary key);
	create sequence numbers;
	insert into keyed select g, 'row ' || g from generate_series(1, 10) g;
	insert into bare values (1, 'one'), (2, null), (2, null)`

// writes is what the losing side commits, a statement each.
var writes = []string{
	`insert into keyed values (11, 'it''s ] new\', null, 1.50, '{a,"b c"}', true, '2026-01-02 03:04:05.678+01')`,
	`update keyed set body = 'changed' where id = 1`,
	`update keyed set id = 99 where id = 2`,
	`delete from keyed where id = 3`,
	`update keyed set big = (select string_agg(md5(g::text), '') from generate_series(1, 500) g) where id = 4`,
	`update keyed set n = 5 where id = 4`, // the large value stays as it was
	`insert into bare values (3, 'three')`,
	`update bare set x = 7 where x = 1`,
	`delete from bare where ctid = (select ctid from bare where x = 2 limit 1)`,
	`select nextval('numbers'), nextval('numbers')`,
	`begin; insert into keyed values (12); savepoint a; insert into keyed values (13); rollback to a; commit`,
	`begin; insert into keyed values (14); rollback`,
	`create table made (id int primary key)`,
	`insert into made values (1)`,
	`alter table untouched add column note text`,
	`analyze keyed; vacuum keyed`,
}

// newRivals are a former active node and the one that the cluster went on with,
// from where the returned position says.
func newRivals(t *testing.T, base string) (loser, winner *node, fork cluster.Position) {
	t.Helper()
	ctx := ctxOf(t)
	ca := pgtest.NewCA(t)
	a := newPrimary(t, ca, "node-a", base+"1")
	must(t, a.EnsureSlots(ctx, "1", []string{"node-b"}))
	b := newStandby(t, ca, "node-b", base+"2", a)
	for s := range strings.SplitSeq(prologue, ";") {
		a.sql(t, s)
	}
	must(t, a.KeepDivergence(ctx))
	end := a.Observe(ctx).Position.LSN
	await(t, "the standby has the rows", func() bool { return b.Observe(ctx).Replayed >= end })
	must(t, a.AdvanceDivergence(ctx, end))
	return a, b, b.rise(t, 0, "node-a")
}

func (n *node) writeAll(t *testing.T, statements []string) {
	t.Helper()
	for _, s := range statements {
		for part := range strings.SplitSeq(s, "; ") {
			if strings.HasPrefix(s, "begin") {
				part = s
			}
			n.sql(t, part)
			if part == s {
				break
			}
		}
	}
}

func (n *node) export(t *testing.T, fork cluster.Position, dir string) divergence.Summary {
	t.Helper()
	s, err := n.Export(ctxOf(t), pgrepl.ExportRequest{Cluster: "c1", Epoch: 5, Fork: fork.LSN, Dir: dir})
	must(t, err)
	return s
}

func changesOf(t *testing.T, dir, id string) (list []divergence.Change) {
	t.Helper()
	f, err := divergence.Open(dir, id)
	must(t, err)
	defer f.Close()
	must(t, divergence.Changes(f, func(c divergence.Change) error { list = append(list, c); return nil }))
	return list
}

// words is a change as a test writes it.
func words(c divergence.Change) string {
	row := func(cols []divergence.Column) string {
		var out []string
		for _, col := range cols {
			v := "null"
			if col.Value != nil {
				v = *col.Value
			}
			out = append(out, col.Name+"="+v)
		}
		return strings.Join(out, ",")
	}
	out := fmt.Sprintf("%s %s %s | %s | %s", c.Op, c.Table, row(c.Key), row(c.Old), row(c.New))
	if len(out) > 140 {
		out = out[:140]
	}
	return out + strings.Join(append([]string{""}, c.Unchanged...), " ~")
}

// Every change after the fork is exported, whichever way the losing server came
// to its end; the directory can be rewound afterwards.
func TestExport(t *testing.T) {
	t.Parallel()
	for i, c := range []struct {
		name string
		end  func(t *testing.T, n *node)
	}{
		{"killed", func(t *testing.T, n *node) { n.Kill(t) }},
		{"running behind a closed gate", func(t *testing.T, n *node) { must(t, n.Gate(ctxOf(t), false)) }},
		{"came back as a standby", func(t *testing.T, n *node) { n.Kill(t); n.boot(t); n.Stop(t) }},
		{"came back as a standby and crashed", func(t *testing.T, n *node) { n.Kill(t); n.boot(t); n.Kill(t) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx := ctxOf(t)
			a, b, fork := newRivals(t, fmt.Sprintf("127.62.2.%d", i+1))
			a.writeAll(t, writes)
			last, _, err := a.LastCommit(ctx, fork.LSN)
			must(t, err)
			c.end(t, a)
			dir := filepath.Join(t.TempDir(), "divergence")
			sum := a.export(t, fork, dir)
			checkExport(t, sum, changesOf(t, dir, sum.ID))
			if !sum.Last.Equal(last) {
				t.Errorf("last commit at %s, and LastCommit said %s", sum.Last, last)
			}
			a.Stop(t)
			again := a.export(t, fork, dir)
			if again.ID != sum.ID {
				t.Errorf("exported again as %s", again.ID)
			}
			must(t, a.Rewind(ctx, b.upstream(), nil))
			a.boot(t)
			must(t, a.Gate(ctx, true))
			a.awaitStreaming(t)
			if got := a.query(t, "select count(*)::text from pg_replication_slots where slot_type = 'logical'"); got != "0" {
				t.Errorf("%s logical slots left", got)
			}
		})
	}
}

func checkExport(t *testing.T, sum divergence.Summary, changes []divergence.Change) {
	t.Helper()
	if !sum.Complete || sum.Physical != "" || sum.Cluster != "c1" || sum.Node != "node-a" || sum.Epoch != 5 {
		t.Errorf("%+v", sum)
	}
	var got []string
	for _, c := range changes {
		got = append(got, words(c))
	}
	want := []string{
		`insert keyed id=11 |  | id=11,body=it's ] new\,big=null,n=1.50,tags={a,"b c"},ok=true,at=2026-01-02 02:04:05.678+00`,
		`update keyed id=1 |  | id=1,body=changed,big=null,n=null,tags=null,ok=null,at=null`,
		`update keyed id=2 |  | id=99,body=row 2,big=null,n=null,tags=null,ok=null,at=null`,
		`delete keyed id=3 |  | `,
		`update keyed id=4 |  | id=4,body=row 4,big=c4ca4238a0b923820dcc509a6f75849bc81e728d9d4c2f636f067f89cc14862ceccbc87e4b5ce2fe28308fd9f2a7baf3a`,
		`update keyed id=4 |  | id=4,body=row 4,n=5,tags=null,ok=null,at=null ~big`,
		`insert bare  |  | x=3,We ird]:=three`,
		`update bare  | x=1,We ird]:=one | x=7,We ird]:=one`,
		`delete bare  | x=2,We ird]:=null | `,
		`insert keyed id=12 |  | id=12,body=null,big=null,n=null,tags=null,ok=null,at=null`,
		`insert made id=1 |  | id=1`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("changes:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(sum.Sequences) != 1 || sum.Sequences[0].Name != "numbers" || sum.Sequences[0].Last < 2 || !sum.Sequences[0].Called {
		t.Errorf("sequences %+v", sum.Sequences)
	}
	if len(sum.Schema) != 2 || !slices.Contains(sum.Schema[0].Objects, "table public.made") ||
		!slices.Contains(sum.Schema[1].Objects, "table public.untouched") || !slices.Contains(sum.Schema[1].Catalogs, "pg_attribute") {
		t.Errorf("schema %+v", sum.Schema)
	}
	if sum.Transactions != 14 || sum.Changes != len(want) || sum.First.IsZero() || sum.Last.Before(sum.First) || sum.ForkTime.After(sum.First) || sum.ForkTime.IsZero() {
		t.Errorf("%d transactions, %d changes, from %s to %s after %s", sum.Transactions, sum.Changes, sum.First, sum.Last, sum.ForkTime)
	}
}

// What no slot holds is kept as a copy of the whole data directory, and the
// summary says so.
func TestExportWithoutSlot(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, _, fork := newRivals(t, "127.62.3.1")
	a.sql(t, "insert into keyed values (11)")
	a.sql(t, "create table early as select 1 x")
	a.sql(t, "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_type = 'logical'")
	must(t, a.KeepDivergence(ctx)) // anew, too late for the first row
	a.sql(t, "insert into keyed values (12)")
	a.sql(t, "alter table keyed alter n type text") // writes the table anew, and no row of a user's
	must(t, a.Gate(ctx, false))
	dir := filepath.Join(t.TempDir(), "divergence")
	request := pgrepl.ExportRequest{Cluster: "c1", Epoch: 5, Fork: fork.LSN, Dir: dir}
	if _, err := a.Export(ctx, request); !errors.Is(err, pgrepl.ErrRunning) {
		t.Errorf("copied while it runs: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	a.Stop(t)
	sum := a.export(t, fork, dir)
	if sum.Complete || len(sum.Missing) != 1 || !strings.Contains(sum.Missing[0], "2 transactions are not in a slot") {
		t.Errorf("%+v", sum)
	}
	changes := changesOf(t, dir, sum.ID)
	if len(changes) != 1 || words(changes[0]) != "insert keyed id=12 |  | id=12,body=null,big=null,n=null,tags=null,ok=null,at=null" {
		t.Errorf("changes %v", changes)
	}
	if _, err := os.Stat(filepath.Join(sum.Physical, "PG_VERSION")); err != nil {
		t.Errorf("no copy: %v", err)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o750, filepath.Join(dir, sum.ID): 0o750, filepath.Join(dir, sum.ID, "changes.jsonl"): 0o640} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}

// A table without a key that was made a moment ago says nothing of the rows that
// are deleted from it.
func TestExportUnidentified(t *testing.T) {
	t.Parallel()
	a, _, fork := newRivals(t, "127.62.3.3")
	a.sql(t, "create table fresh as select 1 x")
	a.sql(t, "delete from fresh")
	must(t, a.KeepDivergence(ctxOf(t)))
	a.sql(t, "insert into fresh values (2)")
	a.sql(t, "delete from fresh")
	a.Kill(t)
	dir := filepath.Join(t.TempDir(), "divergence")
	sum := a.export(t, fork, dir)
	if sum.Complete || len(sum.Missing) != 1 || !strings.Contains(sum.Missing[0], "1 updates and deletes") || sum.Physical == "" {
		t.Errorf("%+v", sum)
	}
	changes := changesOf(t, dir, sum.ID)
	if len(changes) != 4 || changes[1].Identified() || !changes[3].Identified() {
		t.Errorf("changes %+v", changes)
	}
}

// LastCommit counts what users did, and nothing else.
func TestLastCommit(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b, fork := newRivals(t, "127.62.3.5")
	none := func(n *node, what string) {
		t.Helper()
		if at, lsn, err := n.LastCommit(ctx, fork.LSN); err != nil || !at.IsZero() || lsn != 0 {
			t.Errorf("after %s: %s at %s, %v", what, lsn, at, err)
		}
	}
	for _, s := range []string{"analyze keyed", "vacuum keyed", "checkpoint", "begin; insert into keyed values (20); rollback",
		"begin; select * from keyed for update; commit"} {
		a.sql(t, s)
		none(a, s)
	}
	must(t, a.KeepDivergence(ctx))
	none(a, "KeepDivergence")
	none(b, "its promotion")
	for _, s := range []string{"insert into keyed values (20)", "select nextval('numbers')", "create table later (x int)", "truncate bare"} {
		before := time.Now().Add(-time.Millisecond)
		a.sql(t, s)
		a.sql(t, "analyze keyed")
		at, lsn, err := a.LastCommit(ctx, fork.LSN)
		if err != nil || at.Before(before) || at.After(time.Now()) || lsn <= fork.LSN {
			t.Errorf("after %s: %s at %s, %v", s, lsn, at, err)
		}
	}
	want, _, err := a.LastCommit(ctx, fork.LSN)
	must(t, err)
	a.Kill(t)
	if _, _, err := a.LastCommit(ctx, fork.LSN); !errors.Is(err, pgrepl.ErrNotRunning) {
		t.Errorf("without a server: %v", err)
	}
	a.boot(t)
	if got, _, err := a.LastCommit(ctx, fork.LSN); err != nil || !got.Equal(want) {
		t.Errorf("as a standby: %s, not %s; %v", got, want, err)
	}
}

// A former active that follows lets go of its slots; one that is promoted again
// without having followed anybody keeps them.
func TestDivergenceSlots(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b := newPair(t, "127.62.3.7", "127.62.3.8")
	if err := b.KeepDivergence(ctx); !errors.Is(err, pgrepl.ErrStandby) {
		t.Errorf("on a standby: %v", err)
	}
	a.sql(t, "create database other")
	must(t, a.KeepDivergence(ctx))
	const count = "select count(*)::text from pg_replication_slots where slot_type = 'logical'"
	if got := a.query(t, count); got != "2" {
		t.Errorf("%s slots", got)
	}
	a.sql(t, "create table notes (n int)")
	before := a.Observe(ctx).Position
	a.Kill(t)
	a.boot(t)
	a.rise(t, 0, "node-b") // nobody else was active: the slots still hold the table
	must(t, a.KeepDivergence(ctx))
	if got := a.query(t, "select bool_and(confirmed_flush_lsn < '"+before.LSN.String()+"')::text from pg_replication_slots where slot_type = 'logical'"); got != "true" {
		t.Error("the slots were made anew")
	}
	a.sql(t, "insert into notes values (1)")
	end := a.Observe(ctx).Position.LSN
	must(t, a.AdvanceDivergence(ctx, end))
	if got := a.query(t, "select bool_and(confirmed_flush_lsn = '"+end.String()+"')::text from pg_replication_slots where slot_type = 'logical'"); got != "true" {
		t.Error("the slots did not advance")
	}
	must(t, b.Follow(ctx, a.upstream()))
	await(t, "b has the row", func() bool { return b.Observe(ctx).Replayed >= end })
	a.Stop(t)
	b.rise(t, 0, "node-a")
	must(t, b.KeepDivergence(ctx))
	a.boot(t)
	must(t, a.EnsureSlots(ctx, "1", nil))
	if got := a.query(t, count); got != "2" {
		t.Errorf("%s slots before it has followed", got)
	}
	must(t, a.Follow(ctx, b.upstream()))
	a.awaitStreaming(t)
	b.sql(t, "insert into notes values (2)")
	await(t, "a has the next row", func() bool { return a.query(t, "select count(*)::text from notes") == "2" })
	must(t, a.EnsureSlots(ctx, "1", nil))
	if got := a.query(t, count); got != "0" {
		t.Errorf("%s slots after it has followed", got)
	}
}
