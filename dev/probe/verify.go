package probe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Finding is what one node has of a writer's rows.
type Finding struct {
	Node     string  `json:"node"`
	Rows     int     `json:"rows"`
	Lost     []int64 `json:"lost"`     // acknowledged, and not there
	Twice    []int64 `json:"twice"`    // there more than once
	Uncalled []int64 `json:"uncalled"` // there, though refused or never sent
	Landed   int     `json:"landed"`   // indeterminate, and there
}

// Sound says whether the node has each acknowledged row once, and no row that
// cannot be.
func (f Finding) Sound() bool { return len(f.Lost)+len(f.Twice)+len(f.Uncalled) == 0 }

// Verify waits until every standby has replayed what the active has now, and
// looks for the rows of a journal on the active, first, and on the others. The
// writer must have ended. It waits until ctx ends. The error is of looking, not of
// what was found; the findings are those of the nodes that could be looked at.
func Verify(ctx context.Context, j Journal, active Target, others ...Target) ([]Finding, error) {
	conn, err := pgx.Connect(ctx, active.DSN)
	if err != nil {
		return nil, fmt.Errorf("verify on %s: %w", active.Node, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var end string
	if err := conn.QueryRow(ctx, `select pg_current_wal_insert_lsn()::text`).Scan(&end); err != nil {
		return nil, fmt.Errorf("verify on %s: %w", active.Node, err)
	}
	ids, err := rows(ctx, conn, j.Writer)
	if err != nil {
		return nil, fmt.Errorf("verify on %s: %w", active.Node, err)
	}
	findings := []Finding{Examine(j, active.Node, ids)}
	var failed []error
	for _, t := range others {
		ids, err := replayed(ctx, t, end, j.Writer)
		if err != nil {
			failed = append(failed, fmt.Errorf("verify on %s: %w", t.Node, err))
			continue
		}
		findings = append(findings, Examine(j, t.Node, ids))
	}
	return findings, errors.Join(failed...)
}

// replayed returns the rows of a standby once it has replayed up to end.
func replayed(ctx context.Context, t Target, end, writer string) ([]int64, error) {
	conn, err := pgx.Connect(ctx, t.DSN)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := AwaitReplay(ctx, conn, end); err != nil {
		return nil, err
	}
	return rows(ctx, conn, writer)
}

// pause lies between two looks at how far a standby is.
const pause = 5 * time.Millisecond

// AwaitReplay waits until a standby has replayed up to end, an LSN.
func AwaitReplay(ctx context.Context, conn *pgx.Conn, end string) error {
	for {
		var there bool
		var at string
		err := conn.QueryRow(ctx, `select lsn >= $1::text::pg_lsn, lsn::text from coalesce(pg_last_wal_replay_lsn(), '0/0') as lsn`, end).Scan(&there, &at)
		if err != nil {
			return fmt.Errorf("wait until it has replayed %s: %w", end, err)
		}
		if there {
			return nil
		}
		if sleep(ctx, pause); ctx.Err() != nil {
			return fmt.Errorf("it has replayed %s of %s: %w", at, end, ctx.Err())
		}
	}
}

// rows reads the ids from the table itself: an index may hide what is double.
func rows(ctx context.Context, conn *pgx.Conn, writer string) ([]int64, error) {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	for _, off := range []string{`set local enable_indexscan = off`, `set local enable_indexonlyscan = off`, `set local enable_bitmapscan = off`} {
		if _, err := tx.Exec(ctx, off); err != nil {
			return nil, err
		}
	}
	found, err := tx.Query(ctx, `select id from probe where writer = $1`, writer)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(found, pgx.RowTo[int64])
}

// Examine compares the ids that a node has with a journal.
func Examine(j Journal, node string, ids []int64) Finding {
	f := Finding{Node: node, Rows: len(ids)}
	count := make(map[int64]int, len(ids))
	for _, id := range ids {
		if count[id]++; count[id] == 2 {
			f.Twice = append(f.Twice, id)
		}
		if id < j.First || id >= j.Next {
			f.Uncalled = append(f.Uncalled, id)
		}
	}
	for _, a := range j.Acks {
		if count[a.ID] == 0 {
			f.Lost = append(f.Lost, a.ID)
		}
	}
	for _, id := range j.Refused {
		if count[id] > 0 {
			f.Uncalled = append(f.Uncalled, id)
		}
	}
	for _, id := range j.Indeterminate {
		if count[id] > 0 {
			f.Landed++
		}
	}
	slices.Sort(f.Twice)
	slices.Sort(f.Uncalled)
	return f
}
