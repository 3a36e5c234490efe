package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/pgrepl/pgtest"
)

func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func ask[T any](t *testing.T, i instance, sql string) (v T) {
	t.Helper()
	ctx := limit(t)
	err := with(ctx, i, func(c *pgx.Conn) error { return c.QueryRow(ctx, sql).Scan(&v) })
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestByHand(t *testing.T) {
	ctx := limit(t)
	settings := []string{"shared_buffers = '24MB'", "wal_log_hints = 'on'", "max_replication_slots = '7'"}
	h, err := makeByHand(ctx, handSpec{
		Dir: filepath.Join(pgtest.Dir(t), "by-hand"), Bin: pgtest.BinDir, Settings: settings,
		Addresses: []string{"127.10.7.1", "127.10.7.2", "127.10.7.3"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.remove)
	if n := ask[int](t, h.primary, `select count(*) from pg_stat_replication where sync_state = 'quorum'`); n != 2 {
		t.Errorf("%d standbys confirm commits", n)
	}
	got, err := settingsOf(ctx, h.primary)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range settings {
		if !slices.Contains(got, s) {
			t.Errorf("%s is not in effect, or not read back: %q", s, got)
		}
	}

	tool := filepath.Join(pgtest.BinDir, "pgbench")
	if _, err := runPgbench(ctx, tool, h.primary, "-i", "-q", "-s", "1"); err != nil {
		t.Fatal(err)
	}
	if err := checkpoint(ctx, h.primary); err != nil {
		t.Fatal(err)
	}
	text, err := runPgbench(ctx, tool, h.primary, "-n", "-c", "2", "-T", "1")
	if err != nil {
		t.Fatal(err)
	}
	if tps, err := parseTPS(text); err != nil || tps <= 0 {
		t.Errorf("%v transactions a second: %v", tps, err)
	}
	if n := ask[int](t, h.primary, `select count(*) from pgbench_history`); n == 0 {
		t.Error("pgbench has written nothing")
	}

	h.remove()
	for _, s := range h.servers {
		select {
		case <-s.done:
		default:
			t.Error("a server still runs")
		}
	}
	if _, err := os.Stat(h.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder is still there: %v", err)
	}
}

func TestByHandThatCannotStart(t *testing.T) {
	dir := filepath.Join(pgtest.Dir(t), "by-hand")
	_, err := makeByHand(limit(t), handSpec{
		Dir: dir, Bin: pgtest.BinDir, Settings: []string{"shared_buffers = 'much'"}, Addresses: []string{"127.10.7.4", "127.10.7.5"},
	})
	if err == nil {
		t.Fatal("a bad setting gives no error")
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder is still there: %v", err)
	}
}
