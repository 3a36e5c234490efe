package pgrepl

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/understudy-ha/understudy/cluster"
)

// EnsureSlots makes the physical slots that the named nodes read through in a
// tenure of this one, with WAL reserved from now on, and makes anew one whose WAL
// is gone. It ends whoever reads through another of understudy's slots, and drops
// that. Slots of others are never touched.
//
// On a standby the slots are there for the promotion: each call moves those that
// nobody reads to what is replayed, so that they keep back little. Call it now
// and then.
func (s *Server) EnsureSlots(ctx context.Context, t cluster.Tenure, nodes []string) error {
	want := make([]string, len(nodes))
	for i, n := range nodes {
		want[i] = SlotName(t, n)
	}
	if err := s.dropOthers(ctx, want); err != nil {
		return fmt.Errorf("keep replication slots: %w", err)
	}
	for _, step := range []struct {
		sql  string
		args []any
	}{
		{`select pg_drop_replication_slot(slot_name) ` + ourSlots + ` and not active and (wal_status = 'lost' or restart_lsn is null)`, nil},
		// What a former active kept of its divergence is worth nothing once it has
		// received the WAL of another node.
		{`select pg_drop_replication_slot(slot_name) ` + divergenceSlots + ` and not active
			and pg_is_in_recovery() and pg_last_wal_receive_lsn() >= pg_last_wal_replay_lsn()`, nil},
		{`select pg_create_physical_replication_slot(name, true) from unnest($1::text[]) name
			where not exists (select from pg_replication_slots where slot_name = name)`, []any{want}},
		{`select pg_replication_slot_advance(slot_name, pg_last_wal_replay_lsn()) ` + ourSlots + ` and not active
			and pg_is_in_recovery() and restart_lsn < pg_last_wal_replay_lsn()`, nil},
	} {
		if err := s.sql(ctx, step.sql, step.args...); err != nil {
			return fmt.Errorf("keep replication slots: %w", err)
		}
	}
	return nil
}

// dropOthers drops our slots but those. Whoever reads through one comes back a
// moment after it was ended, so it is tried in quick turns.
func (s *Server) dropOthers(ctx context.Context, but []string) error {
	const others = ourSlots + ` and slot_name <> all($1::text[])`
	return poll(ctx, pollEvery, func() (gone bool, err error) {
		var taken *pgconn.PgError
		err = s.sql(ctx, `select pg_drop_replication_slot(slot_name) `+others+` and not active`, but)
		if err != nil && !(errors.As(err, &taken) && taken.Code == objectInUse) {
			return false, err
		}
		var left, ended int
		err = s.row(ctx, `select count(*), count(pg_terminate_backend(active_pid)) `+others, []any{but}, &left, &ended)
		return left == 0, err
	})
}

const objectInUse = "55006" // SQLSTATE

// ourSlots begins with the prefix spelled out: in a pattern _ would be any
// character.
const ourSlots = `from pg_replication_slots where slot_type = 'physical' and starts_with(slot_name, '` + slotPrefix + `')`
