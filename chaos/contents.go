package chaos

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/dev/probe"
)

// contents reads what every node holds, active first, once each standby has replayed
// what the active node has now: of the windows below upTo. The reads of the registers of keys are returned as
// operations too: nobody writes these any more, so every node must show the last value.
func contents(ctx context.Context, h *history, upTo int64, keys []string, active probe.Target, others []probe.Target) (all []Contents, reads []Op, err error) {
	conn, err := pgx.Connect(ctx, active.DSN)
	if err != nil {
		return nil, nil, fmt.Errorf("look at %s: %w", active.Node, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	began := h.now()
	var end string
	if err := conn.QueryRow(ctx, `select pg_current_wal_insert_lsn()::text`).Scan(&end); err != nil {
		return nil, nil, fmt.Errorf("look at %s: %w", active.Node, err)
	}
	look := func(node string, conn *pgx.Conn) error {
		c, err := holds(ctx, node, upTo, conn)
		for _, key := range keys {
			reads = append(reads, Op{Client: "look at " + node, Node: node, Key: key, Action: Read, Value: c.Registers[key], Outcome: OK, Call: began, Return: h.now()})
		}
		all = append(all, c)
		return err
	}
	if err := look(active.Node, conn); err != nil {
		return nil, nil, fmt.Errorf("look at %s: %w", active.Node, err)
	}
	for _, t := range others {
		standby, err := pgx.Connect(ctx, t.DSN)
		if err != nil {
			return nil, nil, fmt.Errorf("look at %s: %w", t.Node, err)
		}
		if err = probe.AwaitReplay(ctx, standby, end); err == nil {
			err = look(t.Node, standby)
		}
		_ = standby.Close(context.WithoutCancel(ctx))
		if err != nil {
			return nil, nil, fmt.Errorf("look at %s: %w", t.Node, err)
		}
	}
	return all, reads, nil
}

// holds reads the rows of a node.
func holds(ctx context.Context, node string, upTo int64, conn *pgx.Conn) (Contents, error) {
	c := Contents{Node: node, Registers: make(map[string]int64)}
	rows, err := conn.Query(ctx, `select item from chaos_item where time_window < $1`, upTo)
	if err != nil {
		return c, err
	}
	if c.Items, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err != nil {
		return c, err
	}
	if rows, err = conn.Query(ctx, `select key, value from chaos_register`); err != nil {
		return c, err
	}
	var key string
	var value int64
	_, err = pgx.ForEachRow(rows, []any{&key, &value}, func() error {
		c.Registers[key] = value
		return nil
	})
	return c, err
}
