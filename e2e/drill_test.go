package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/drill"
	"github.com/understudy-ha/understudy/history"
)

// drilled rehearses on a healthy cluster, is refused on one that is not, and is
// interrupted in the middle. Nothing of it stays.
func drilled(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	to := before.Standbys()[1]
	want(t, g.cluster(t, to, "drill", "--to", "node9"), 1, "node9 is not a member")
	want(t, g.cluster(t, to, "drill", "--to", before.Active), 1, "the drill is refused", "is already the active node")
	want(t, g.cluster(t, to, "nodes", "update", before.Active, "--options", "no_failover=true"), 0)
	want(t, g.cluster(t, to, "drill"), 1, "the drill is refused", before.Active+" has no_failover set")
	want(t, g.cluster(t, to, "nodes", "update", before.Active, "--options", "no_failover="), 0)
	if after := g.healthy(t, "node1", 3); after.Epoch != before.Epoch {
		t.Errorf("a drill that is refused led from epoch %d to %d", before.Epoch, after.Epoch)
	}

	r := ask[drill.Report](t, g, to, "drill", "--to", to)
	if len(r.Legs) != 2 || r.Legs[0].To != to || r.Legs[1].To != before.Active {
		t.Fatalf("%+v", r)
	}
	for _, l := range r.Legs {
		if l.OutageMs <= 0 || l.StandbyMs <= 0 || !l.Record.Asked || !strings.HasPrefix(l.Record.Why, "a drill, on ") || l.Record.Winner != l.To {
			t.Errorf("%+v", l)
		}
	}
	if r.Lost != 0 || r.Acknowledged == 0 || len(r.Checked) != 3 {
		t.Errorf("%+v", r)
	}
	after := g.healthy(t, "node1", 3)
	if after.Active != before.Active || after.Epoch != before.Epoch+2 {
		t.Errorf("from %+v to %+v", before, after)
	}
	g.nothingLeft(t, after.Active)
	want(t, g.cluster(t, to, "explain"), 0, to+" -> "+before.Active, "why        a drill", "answered", "detected", "writable", "following", "outage")
	if c := ask[history.Change](t, g, to, "explain", "1"); c.Winner != "node1" || c.Epoch != 1 {
		t.Errorf("explain 1: %+v", c)
	}
	want(t, g.cluster(t, to, "explain", "4711"), 1, "no change to epoch 4711")
	want(t, g.cluster(t, to, "explain", "last"), 2, `"last" is no epoch`)
	want(t, g.cluster(t, to, "events"), 0, "options   no_failover of "+before.Active+": default -> true, by an operator on "+to)

	g.drillInterrupted(t, to)
	g.nothingLeft(t, g.healthy(t, "node1", 3).Active)
}

// drillInterrupted runs a drill that is given Ctrl-C in its first hand-over.
func (g *group) drillInterrupted(t *testing.T, on string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	command := exec.CommandContext(ctx, filepath.Join(bin, "understudy"), "--root", filepath.Join(g.dir, on), "cluster", "drill", "--json")
	said, err := command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	command.Stdout = &out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(said)
	for line := ""; !strings.Contains(line, "hand over"); {
		if line, err = lines.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	if err := command.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	rest := new(bytes.Buffer)
	if _, err := rest.ReadFrom(lines); err != nil {
		t.Error(err)
	}
	if err := command.Wait(); err == nil {
		t.Error("a drill that was interrupted ended well")
	}
	if !strings.Contains(rest.String(), "drop the schema") {
		t.Errorf("%s", rest)
	}
	var r drill.Report
	if out.Len() > 0 && json.Unmarshal(out.Bytes(), &r) != nil {
		t.Errorf("%s", out.String())
	}
}

// nothingLeft looks for what a drill has made.
func (g *group) nothingLeft(t *testing.T, active string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	conn, err := pgx.Connect(ctx, g.node(t, active).Postgres.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	var left int
	err = conn.QueryRow(ctx, `select (select count(*) from pg_roles where rolname = 'understudy_drill') + (select count(*) from pg_namespace where nspname = 'understudy_drill')`).Scan(&left)
	if err != nil || left != 0 {
		t.Errorf("%d things of a drill are left: %v", left, err)
	}
}
