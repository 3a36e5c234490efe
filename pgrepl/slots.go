package pgrepl

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/understudy-ha/understudy/cluster"
)

// EnsureSlots makes the physical slots that the named nodes read through in a
// tenure of this one, with WAL reserved from now on, and makes anew one whose WAL
// is gone. It ends whoever reads through another of understudy's slots, and drops
// that. Slots of others are never touched.
func (s *Server) EnsureSlots(ctx context.Context, t cluster.Tenure, nodes []string) error {
	want := make([]string, len(nodes))
	for i, n := range nodes {
		want[i] = SlotName(t, n)
	}
	// Whoever was ended comes back a moment later, so it is tried in quick turns.
	err := poll(ctx, pollEvery, func() (bool, error) {
		left, err := s.keepSlots(ctx, want)
		var taken *pgconn.PgError
		if errors.As(err, &taken) && taken.Code == objectInUse {
			return false, nil
		}
		return left == 0, err
	})
	if err != nil {
		return fmt.Errorf("keep replication slots: %w", err)
	}
	return nil
}

// keepSlots is one turn, in a single round trip. It returns how many of our other
// slots are left, because somebody read through them.
func (s *Server) keepSlots(ctx context.Context, want []string) (left int, err error) {
	const others = ourSlots + ` and slot_name <> all($1::text[])`
	err = s.pool.with(ctx, func(c *pgx.Conn) error {
		var b pgx.Batch
		b.Queue(`select pg_terminate_backend(active_pid) `+others+` and active`, want)
		b.Queue(`select pg_drop_replication_slot(slot_name) `+others+` and not active`, want)
		b.Queue(`select pg_drop_replication_slot(slot_name) ` + ourSlots + ` and not active and (wal_status = 'lost' or restart_lsn is null)`)
		// What a former active kept of its divergence is worth nothing once it has
		// received the WAL of another node.
		b.Queue(`select pg_drop_replication_slot(slot_name) ` + divergenceSlots + ` and not active
			and pg_is_in_recovery() and pg_last_wal_receive_lsn() >= pg_last_wal_replay_lsn()`)
		b.Queue(`select pg_create_physical_replication_slot(name, true) from unnest($1::text[]) name
			where not exists (select from pg_replication_slots where slot_name = name)`, want)
		b.Queue(`select count(*) `+others, want).QueryRow(func(row pgx.Row) error { return row.Scan(&left) })
		return c.SendBatch(ctx, &b).Close()
	})
	return left, err
}

const objectInUse = "55006" // SQLSTATE

// ourSlots begins with the prefix spelled out: in a pattern _ would be any
// character.
const ourSlots = `from pg_replication_slots where slot_type = 'physical' and starts_with(slot_name, '` + slotPrefix + `')`
