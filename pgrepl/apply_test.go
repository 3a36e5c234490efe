package pgrepl_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/pgrepl/divergence"
)

// apply applies an export to the node's database as the superuser of tests.
func (n *node) apply(t *testing.T, sum divergence.Summary, dir string, commit bool) divergence.Report {
	t.Helper()
	f, err := divergence.Open(dir, sum.ID)
	must(t, err)
	defer f.Close()
	r, err := divergence.Apply(ctxOf(t), sum, f, n.Writer, commit)
	must(t, err)
	return r
}

func conflictsOf(r divergence.Report) (list []string) {
	for _, c := range r.Conflicts {
		list = append(list, fmt.Sprintf("%d %s %s: %s", c.Change.N, c.Change.Op, c.Change.Table, c.Reason))
	}
	return list
}

// tables is all data that the tests change, as text.
func (n *node) tables(t *testing.T) string {
	t.Helper()
	return n.query(t, `select concat((select string_agg(k::text, E'\n' order by id) from keyed k), E'\n', (select string_agg(b::text, E'\n' order by b::text) from bare b))`)
}

// Where nothing stands against it, the winner gets exactly what the loser had;
// and a rehearsal changes nothing, and a second time applies nothing.
func TestApply(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b, fork := newRivals(t, "127.62.4.1")
	a.writeAll(t, writes[:12])
	want := a.tables(t)
	a.Kill(t)
	dir := filepath.Join(t.TempDir(), "divergence")
	sum := a.export(t, fork, dir)
	before := b.tables(t)
	if r := b.apply(t, sum, dir, false); r.Committed || r.Applied != 11 || len(r.Conflicts) != 0 {
		t.Errorf("rehearsal: %+v", r)
	}
	if got := b.tables(t); got != before || b.query(t, "select count(*)::text from pg_namespace where nspname = 'understudy'") != "0" {
		t.Errorf("a rehearsal has changed the database:\n%s", got)
	}
	if r := b.apply(t, sum, dir, true); !r.Committed || r.Applied != 11 || r.Before != 0 || len(r.Conflicts) != 0 {
		t.Errorf("%+v", r)
	}
	if got := b.tables(t); got != want {
		t.Errorf("applied:\n%s\nwant:\n%s", got, want)
	}
	if got := b.query(t, "select (nextval('numbers') > 2)::text"); got != "true" {
		t.Error("the sequence was not moved on")
	}
	if r := b.apply(t, sum, dir, true); r.Applied != 0 || r.Before != 10 || len(r.Conflicts) != 0 {
		t.Errorf("the second time: %+v", r)
	}
	if got := b.tables(t); got != want {
		t.Errorf("applied twice:\n%s", got)
	}
	// What was applied is nobody's divergence.
	if _, at, err := b.LastCommit(ctx, fork.LSN); err != nil || at == 0 {
		t.Errorf("last commit: %v, %v", at, err)
	}
}

// Every kind of conflict is told apart and left out; the rest is applied.
func TestApplyConflicts(t *testing.T) {
	t.Parallel()
	a, b, fork := newRivals(t, "127.62.4.3")
	a.writeAll(t, []string{
		"update keyed set body = 'a' where id = 1",   // 1: changed meanwhile
		"update keyed set body = 'aa' where id = 1",  // 2: follows from 1
		"delete from keyed where id = 2",             // 3: changed meanwhile
		"update keyed set body = 'a' where id = 3",   // 4: missing
		"insert into keyed values (50, 'a')",         // 5: key exists
		"update bare set x = 10 where x = 1",         // 6: changed meanwhile
		"insert into keyed values (60, 'a')",         // 7: fine
		"update keyed set body = 'b' where id = 60",  // 8: fine
		"delete from keyed where id = 60",            // 9: fine
		"insert into keyed values (60, 'c')",         // 10: fine
		"update keyed set id = 61 where id = 60",     // 11: fine
		"update keyed set body = 'd' where id = 61",  // 12: fine
		"create table made (id int primary key)",     //
		"insert into made values (1)",                // 13: no such table
		"update untouched set id = 1; truncate bare", // 14: not empty
		"update keyed set body = body where id = 5",  // 15: fine
	})
	a.Kill(t)
	b.writeAll(t, []string{
		"update keyed set body = 'b' where id in (1, 2)", "delete from keyed where id = 3",
		"insert into keyed values (50, 'b')", "update bare set \"We ird]:\" = 'b' where x = 1",
	})
	dir := filepath.Join(t.TempDir(), "divergence")
	sum := a.export(t, fork, dir)
	r := b.apply(t, sum, dir, true)
	want := []string{
		"1 update keyed: row was changed meanwhile",
		"2 update keyed: row was changed meanwhile",
		"3 delete keyed: row was changed meanwhile",
		"4 update keyed: row is missing",
		"5 insert keyed: key exists already: Key (id)=(50) already exists.",
		"6 update bare: row is missing or was changed meanwhile",
		`13 insert made: relation "public.made" does not exist`,
		"14 truncate bare: a truncate is not applied to a table that has rows",
	}
	if got := conflictsOf(r); !slices.Equal(got, want) || r.Applied != 7 {
		t.Errorf("%d applied, conflicts:\n%s\nwant:\n%s", r.Applied, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := b.query(t, "select string_agg(id || ' ' || body, ', ' order by id) from keyed where id in (1, 2, 3, 50, 60, 61)"); got != "1 b, 2 b, 50 b, 61 d" {
		t.Errorf("rows %s", got)
	}
	// Once the cause is gone, what was left out goes through, and nothing else.
	b.sql(t, "create table made (id int primary key)")
	b.sql(t, "delete from bare")
	r = b.apply(t, sum, dir, true)
	if r.Applied != 2 || r.Before != 7 || len(r.Conflicts) != 6 {
		t.Errorf("again: %d applied, %d before, conflicts %v", r.Applied, r.Before, conflictsOf(r))
	}
}

// A transaction that wrote before the fork and committed after it is part of
// what was lost; on a node that was never demoted it is a change meanwhile.
func TestStraddlingTransaction(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a, b, _ := newTrio(t, "127.62.4.1"+"5")
	must(t, a.KeepDivergence(ctx))
	open, err := pgx.Connect(ctx, a.DSN())
	must(t, err)
	defer open.Close(context.WithoutCancel(ctx))
	_, err = open.Exec(ctx, "begin; update notes set body = 'late' where n = 1; select pg_current_xact_id()")
	must(t, err)
	a.sql(t, "insert into notes values (500, 'early')") // and with it the open one is in the WAL
	end := a.Observe(ctx).Position.LSN
	await(t, "b has that", func() bool { return b.Observe(ctx).Replayed >= end })
	must(t, a.AdvanceDivergence(ctx, end))
	fork := b.rise(t, 0, "node-a")
	_, err = open.Exec(ctx, "commit")
	must(t, err)
	at, _, err := a.LastCommit(ctx, fork.LSN)
	if err != nil || at.IsZero() {
		t.Errorf("last commit %s, %v", at, err)
	}
	a.Kill(t)
	dir := filepath.Join(t.TempDir(), "divergence")
	sum := a.export(t, fork, dir)
	changes := changesOf(t, dir, sum.ID)
	if !sum.Complete || len(changes) != 1 || words(changes[0]) != "update notes n=1 |  | n=1,body=late" {
		t.Errorf("%v of %+v", changes, sum)
	}
	must(t, b.Gate(ctx, true))
	if r := b.apply(t, sum, dir, true); r.Applied != 1 || len(r.Conflicts) != 0 {
		t.Errorf("%+v", r)
	}
	if got := b.query(t, "select body from notes where n = 1"); got != "late" {
		t.Errorf("row is %s", got)
	}
}
