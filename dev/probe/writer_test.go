package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/pgrepl/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// pair is a primary that waits for its standby at every commit.
func pair(t *testing.T) (primary, standby *pgtest.Instance) {
	t.Helper()
	primary, standby = pgtest.New(t, "127.10.6.1"), pgtest.New(t, "127.10.6.2")
	hba := filepath.Join(filepath.Dir(primary.ConfigFile), "pg_hba.conf")
	add(t, hba, "host replication all 127.0.0.0/8 trust\n")
	add(t, primary.ConfigFile, "synchronous_standby_names = 'ANY 1 (b)'\n")
	add(t, standby.ConfigFile, fmt.Sprintf("primary_conninfo = '%s application_name=b'\nrecovery_target_timeline = latest\n", primary.DSN()))
	if err := os.WriteFile(filepath.Join(standby.DataDir, "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	primary.Start(t)
	standby.Start(t)
	return primary, standby
}

func add(t *testing.T, file, text string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// limit is for everything of one test.
func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func exec(t *testing.T, i *pgtest.Instance, sql string, args ...any) {
	t.Helper()
	ctx := limit(t)
	conn, err := pgx.Connect(ctx, i.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql, args...); err != nil {
		t.Fatal(err)
	}
}

// run opens a writer on both servers and lets it write until the returned
// function is called, which gives the journal.
func run(t *testing.T, a, b *pgtest.Instance) (w *Writer, finish func() Journal) {
	t.Helper()
	w, err := Open(limit(t), Options{
		Targets: []Target{{"a", a.DSN()}, {"b", b.DSN()}}, Name: "test", Limit: 500 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	ended := false
	finish = func() Journal {
		cancel()
		if !ended {
			ended = true
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		return w.Journal()
	}
	t.Cleanup(func() { finish() })
	return w, finish
}

func await(t *testing.T, what string, there func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !there(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long until %s", what)
		}
	}
}

func TestWriterFollowsTheWritableServer(t *testing.T) {
	a, b := pair(t)
	w, finish := run(t, a, b)
	await(t, "a has acknowledged 20 rows", func() bool { return len(w.Journal().Acks) >= 20 })

	fault := time.Now()
	a.Kill(t)
	exec(t, b, "select pg_promote(false)")
	await(t, "b has acknowledged a row", func() bool { return w.Last().Node == "b" })
	acks := len(w.Journal().Acks)
	await(t, "b has acknowledged 20 more", func() bool { return len(w.Journal().Acks) >= acks+20 })
	j := finish()

	if gap := j.Longest(fault, time.Now()); gap.Before != "a" || gap.After != "b" {
		t.Errorf("the longest gap is %v from %q to %q, which is not the failover's", gap.Length(), gap.Before, gap.After)
	}
	checkIDs(t, j)
	ctx := limit(t)
	found, err := Verify(ctx, j, Target{"b", b.DSN()})
	if err != nil {
		t.Fatal(err)
	}
	if !found[0].Sound() || found[0].Rows < len(j.Acks) {
		t.Errorf("after a failover without loss: %+v", found)
	}

	// The check must be able to fail.
	gone := j.Acks[5].ID
	exec(t, b, "delete from probe where id = $1", gone)
	exec(t, b, "insert into probe values ($1, now(), 'test')", j.Next+1)
	if found, err = Verify(ctx, j, Target{"b", b.DSN()}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(found[0].Lost, []int64{gone}) || !slices.Equal(found[0].Uncalled, []int64{j.Next + 1}) {
		t.Errorf("one row deleted and one added behind the writer's back: %+v", found)
	}
}

// checkIDs sees that every id was written once and is accounted for once.
func checkIDs(t *testing.T, j Journal) {
	t.Helper()
	var ids []int64
	for _, a := range j.Acks {
		ids = append(ids, a.ID)
	}
	ids = slices.Sorted(slices.Values(slices.Concat(ids, j.Indeterminate, j.Refused)))
	for i, id := range ids {
		if id != j.First+int64(i) {
			t.Fatalf("id %d where %d was expected: written twice or not accounted for", id, j.First+int64(i))
		}
	}
	if j.First+int64(len(ids)) != j.Next {
		t.Errorf("%d ids are accounted for, from %d to %d", len(ids), j.First, j.Next)
	}
}

func TestHungWriteIsIndeterminate(t *testing.T) {
	a, b := pair(t)
	w, finish := run(t, a, b)
	await(t, "a has acknowledged 20 rows", func() bool { return len(w.Journal().Acks) >= 20 })
	// Without its standby a commits locally and acknowledges nothing.
	b.Freeze(t)
	await(t, "a write has hung", func() bool { return len(w.Journal().Indeterminate) > 0 })
	b.Thaw(t)
	acks := len(w.Journal().Acks)
	await(t, "a acknowledges again", func() bool { return len(w.Journal().Acks) > acks })
	j := finish()
	checkIDs(t, j)
	found, err := Verify(limit(t), j, Target{"a", a.DSN()}, Target{"b", b.DSN()})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if !f.Sound() || f.Landed == 0 {
			t.Errorf("rows that hung were committed locally, and sent to the standby later: %+v", f)
		}
	}
}

func TestUnconfirmedCommitIsIndeterminate(t *testing.T) {
	a, b := pair(t)
	w, finish := run(t, a, b)
	await(t, "a has acknowledged 20 rows", func() bool { return len(w.Journal().Acks) >= 20 })
	b.Freeze(t)
	// The server itself gives up waiting for the standby, with a warning.
	await(t, "a waiting commit was cancelled", func() bool {
		exec(t, a, "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")
		return len(w.Journal().Indeterminate) > 0
	})
	b.Thaw(t)
	checkIDs(t, finish())
}

func TestWriterStopsAtARowOfItsID(t *testing.T) {
	a, _ := pair(t)
	w, err := Open(limit(t), Options{Targets: []Target{{"a", a.DSN()}}, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	exec(t, a, "insert into probe values (3, now(), 'somebody else')")
	if err := w.Run(limit(t)); !errors.Is(err, ErrTwice) {
		t.Errorf("an id that was there already: %v", err)
	}
	if j := w.Journal(); len(j.Acks) != 2 || len(j.Refused) != 1 {
		t.Errorf("ids 1 and 2 are acknowledged and 3 is refused: %+v", j)
	}
}

func TestVerifySaysWhichNodeIsBehind(t *testing.T) {
	a, b := pair(t)
	w, finish := run(t, a, b)
	await(t, "a has acknowledged 5 rows", func() bool { return len(w.Journal().Acks) >= 5 })
	j := finish()
	exec(t, b, "select pg_wal_replay_pause()")
	exec(t, a, "insert into probe values (1000, now(), 'somebody else')")
	ctx, cancel := context.WithTimeout(limit(t), time.Second)
	defer cancel()
	found, err := Verify(ctx, j, Target{"a", a.DSN()}, Target{"b", b.DSN()})
	if !errors.Is(err, context.DeadlineExceeded) || len(found) != 1 {
		t.Errorf("a standby that does not replay: %v, %+v", err, found)
	}
}
