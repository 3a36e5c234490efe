package pgrepl

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl/divergence"
)

// divergencePrefix begins the names of the logical slots; the number of the
// database follows. No node name makes a slot with two underscores.
const divergencePrefix = slotPrefix + "_divergence_"

const divergenceSlots = `from pg_replication_slots where slot_type = 'logical' and starts_with(slot_name, '` + divergencePrefix + `')`

// databasesSQL are the databases that clients may write to, and the slot of each.
const databasesSQL = `select d.oid::bigint, d.datname, '` + divergencePrefix + `' || d.oid, coalesce(s.wal_status, ''),
	coalesce(s.confirmed_flush_lsn::text, '')
	from pg_database d left join pg_replication_slots s on s.slot_name = '` + divergencePrefix + `' || d.oid
	where d.datallowconn and not d.datistemplate order by d.oid`

// database is one with its slot.
type database struct {
	oid       int64
	name      string
	slot      string
	status    string // of the slot's WAL: reserved, extended, unreserved, lost; empty: no slot
	confirmed string // the slot holds what has committed after it
}

func (d database) usable() bool { return d.status != "" && d.status != "lost" }

func databasesOn(ctx context.Context, c *pgx.Conn) (list []database, err error) {
	rows, err := c.Query(ctx, databasesSQL)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) (d database, err error) {
		err = r.Scan(&d.oid, &d.name, &d.slot, &d.status, &d.confirmed)
		return d, err
	})
}

// slotWithin bounds the making of a slot, which waits for the transactions that
// run, and for ever for one that is prepared.
const slotWithin = 3 * time.Second

// KeepDivergence keeps what this primary may turn out to have written in vain: a
// logical slot in every database, which holds the row changes since
// AdvanceDivergence, and REPLICA IDENTITY FULL on tables that have neither a
// primary key nor a choice of their owner, so that their updates and deletes say
// which row they meant. Slots that have lost their WAL are made anew.
//
// Call it after Promote, before the gate is opened, so that nothing is missed;
// and now and then, for new databases and tables. It does nothing where nothing
// is missing. What it could not do, because a transaction was in the way, is in
// the error and is left to the next call: an export finds out by itself what a
// slot does not hold. On a standby the error wraps ErrStandby.
func (s *Server) KeepDivergence(ctx context.Context) error {
	if err := s.keepDivergence(ctx); err != nil {
		return fmt.Errorf("keep what may be lost: %w", err)
	}
	return nil
}

func (s *Server) keepDivergence(ctx context.Context) error {
	list, err := s.databases(ctx)
	if err != nil {
		return err
	}
	var group errgroup.Group
	errs := make([]error, len(list))
	for i, d := range list {
		group.Go(func() error {
			if err := s.keepIn(ctx, d); err != nil {
				errs[i] = fmt.Errorf("database %s: %w", d.name, err)
			}
			return nil
		})
	}
	return errors.Join(group.Wait(), errors.Join(errs...))
}

// databases are those of a primary.
func (s *Server) databases(ctx context.Context) (list []database, err error) {
	err = s.pool.with(ctx, func(c *pgx.Conn) error {
		var standby bool
		if err := c.QueryRow(ctx, "select pg_is_in_recovery()").Scan(&standby); err != nil {
			return err
		}
		if standby {
			return ErrStandby
		}
		list, err = databasesOn(ctx, c)
		return err
	})
	return list, err
}

// keepIn makes the slot of one database first: it records the rest.
func (s *Server) keepIn(ctx context.Context, d database) error {
	c, err := s.connectTo(ctx, s.SocketDir, d.name)
	if err != nil {
		return err
	}
	defer discard(c)
	if d.status == "lost" {
		if _, err := c.Exec(ctx, "select pg_drop_replication_slot($1)", d.slot); err != nil {
			return fmt.Errorf("drop slot: %w", err)
		}
		s.log.Warn("row changes that are not confirmed are no longer kept: their WAL is gone", "database", d.name)
	}
	if !d.usable() {
		ctx, cancel := context.WithTimeout(ctx, slotWithin)
		_, err := c.Exec(ctx, "select pg_create_logical_replication_slot($1, 'test_decoding')", d.slot)
		cancel()
		if err != nil {
			return fmt.Errorf("make slot: %w", err)
		}
	}
	return identifyRows(ctx, c)
}

// keylessSQL are tables whose updates and deletes would not say which row they
// meant.
const keylessSQL = `select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
	where c.relkind in ('r', 'p') and c.relpersistence = 'p' and c.relreplident = 'd' and c.oid >= 16384 and n.nspname !~ '^pg_'
	and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)
	and not exists (select from pg_depend x where x.objid = c.oid and x.classid = 'pg_class'::regclass and x.deptype = 'e')`

// identifyRows sets REPLICA IDENTITY FULL where it is needed. A table that is
// in use is left to the next call rather than waited for.
func identifyRows(ctx context.Context, c *pgx.Conn) error {
	rows, err := c.Query(ctx, keylessSQL)
	if err != nil {
		return err
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	var errs []error
	for _, table := range tables {
		err := pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			for _, sql := range []string{"set local lock_timeout = '50ms'",
				"select pg_logical_emit_message(true, '" + divergence.Bookkeeping + "', '')",
				"alter table " + table + " replica identity full"} {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("set replica identity of %s: %w", table, err))
		}
	}
	return errors.Join(errs...)
}

// AdvanceDivergence lets go of the changes up to an LSN that every member has
// confirmed: they cannot be lost any more, and their WAL need not be kept. On a
// standby the error wraps ErrStandby.
func (s *Server) AdvanceDivergence(ctx context.Context, to cluster.LSN) error {
	list, err := s.databases(ctx)
	if err != nil {
		return fmt.Errorf("let go of confirmed changes: %w", err)
	}
	var errs []error
	for _, d := range list {
		if !d.usable() || lsnOrZero(d.confirmed) >= to {
			continue
		}
		if err := s.advanceIn(ctx, d, to); err != nil {
			errs = append(errs, fmt.Errorf("let go of confirmed changes in database %s: %w", d.name, err))
		}
	}
	return errors.Join(errs...)
}

// advanceIn must be connected to the slot's own database.
func (s *Server) advanceIn(ctx context.Context, d database, to cluster.LSN) error {
	c, err := s.connectTo(ctx, s.SocketDir, d.name)
	if err != nil {
		return err
	}
	defer discard(c)
	_, err = c.Exec(ctx, `select pg_replication_slot_advance(slot_name, least($2::text::pg_lsn, pg_current_wal_flush_lsn()))
		from pg_replication_slots where slot_name = $1 and not active`, d.slot, to.String())
	return err
}

// LastCommit returns when the last transaction after an LSN committed that
// changed data, and where. Rows, sequences and the schema are data; what
// vacuum, analyze and understudy do is not. It is the zero time when there is
// none. It reads the WAL from there on, so it takes as long as that is much. It
// works on a primary and on a standby; without a server the error wraps
// ErrNotRunning.
func (s *Server) LastCommit(ctx context.Context, after cluster.LSN) (time.Time, cluster.LSN, error) {
	scan, err := s.scanRunning(ctx, after)
	if err != nil {
		return time.Time{}, 0, fmt.Errorf("look for the last commit after %s: %w", after, err)
	}
	last, ok := scan.Last()
	if !ok {
		return time.Time{}, 0, nil
	}
	return last.At, last.LSN, nil
}

func (s *Server) scanRunning(ctx context.Context, after cluster.LSN) (*divergence.Scan, error) {
	var end cluster.Position
	var back cluster.LSN
	err := s.pool.with(ctx, func(c *pgx.Conn) (err error) {
		end, back, err = endOf(ctx, c)
		return err
	})
	if err != nil {
		return nil, err
	}
	if end.Timeline == 0 {
		id, err := s.identify(ctx)
		if err != nil {
			return nil, err
		}
		end.Timeline = id.at.Timeline
	}
	return s.scan(ctx, back, after, end)
}

// endOf is the end of WAL of a server, and from where its slots need it. A
// standby does not tell its timeline.
func endOf(ctx context.Context, c *pgx.Conn) (end cluster.Position, back cluster.LSN, err error) {
	var lsn, timeline, oldest string
	err = c.QueryRow(ctx, `select case when r then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end::text,
		case when r then '' else substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8) end,
		coalesce((select min(restart_lsn)::text `+divergenceSlots+`), '') from pg_is_in_recovery() r`).Scan(&lsn, &timeline, &oldest)
	return cluster.Position{Timeline: timelineOf(timeline), LSN: lsnOrZero(lsn)}, lsnOrZero(oldest), err
}

// Writer opens a session on a database of this server as an operator's: unlike
// understudy's own it commits as the cluster demands. The gate does not keep it
// out; that this node is the active one is for the caller to see to.
func (s *Server) Writer(ctx context.Context, database string) (*pgx.Conn, error) {
	return s.dial(ctx, s.SocketDir, database, map[string]string{"statement_timeout": "0", "lock_timeout": "10s"})
}
