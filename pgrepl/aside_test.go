package pgrepl_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/pgrepl/divergence"
)

// wroteApart is newRivals whose loser has written a row of its own, with the
// request to export it.
func wroteApart(t *testing.T, base string) (loser, winner *node, fork cluster.Position, r pgrepl.ExportRequest) {
	t.Helper()
	loser, winner, fork = newRivals(t, base)
	loser.sql(t, "insert into keyed values (100)")
	return loser, winner, fork, pgrepl.ExportRequest{Cluster: "c1", Epoch: 5, Fork: fork.LSN, Dir: t.TempDir()}
}

// What cannot be exported, because the server does not start, is recorded, and the
// directory outlives every clone.
func TestSetAside(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	loser, winner, fork, r := wroteApart(t, "127.68.2.1")
	loser.Kill(t)
	wrote := loser.Instance.DataDir
	must(t, os.Rename(filepath.Join(wrote, "pg_xact"), filepath.Join(wrote, "pg_xact.gone")))
	_, why := loser.Export(ctx, r)
	if why == nil {
		t.Fatal("a server that does not start was exported")
	}
	first, err := loser.SetAside(ctx, r, why)
	must(t, err)
	again, err := loser.SetAside(ctx, r, why)
	if err != nil || !reflect.DeepEqual(first, again) {
		t.Errorf("once more: %+v, %v", again, err)
	}
	if first.Complete || first.Node != "node-a" || first.Timeline != fork.Timeline-1 || len(first.Missing) != 1 || !strings.Contains(first.Missing[0], "the server ended") {
		t.Errorf("the record is %+v", first)
	}
	if _, err := os.Stat(first.Physical); err == nil || !loser.Complete() {
		t.Error("the directory is not in its place any more")
	}
	for range 4 {
		must(t, loser.Clone(ctx, winner.upstream(), nil))
	}
	if _, err := os.Stat(filepath.Join(first.Physical, "pg_xact.gone")); err != nil {
		t.Errorf("the directory was not kept: %v", err)
	}
	list, err := divergence.List(r.Dir)
	if err != nil || len(list) != 1 || !reflect.DeepEqual(list[0], first) {
		t.Errorf("the list is %+v, %v", list, err)
	}
	old, err := filepath.Glob(wrote + ".old-*")
	if err != nil || len(old) != 2 {
		t.Errorf("earlier directories: %v, %v", old, err)
	}
	loser.boot(t)
	loser.awaitStreaming(t)
}

// A directory that has left a timeline on which its node wrote does not pass for
// one that holds it.
func TestExportOfAnotherLine(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	loser, _, fork, r := wroteApart(t, "127.68.3.1")
	loser.Stop(t)
	r.Wrote = []cluster.Timeline{fork.Timeline - 1, 9}
	if _, err := loser.Export(ctx, r); err == nil || !strings.Contains(err.Error(), "timeline 9") {
		t.Errorf("exported: %v", err)
	}
	r.Wrote = r.Wrote[:1]
	sum, err := loser.Export(ctx, r)
	if err != nil || sum.Changes != 1 || !sum.Complete {
		t.Errorf("the export is %+v, %v", sum, err)
	}
	_, err = loser.SetAside(ctx, pgrepl.ExportRequest{Dir: filepath.Join(r.Dir, sum.ID, "changes.jsonl")}, errors.New("no reason"))
	if err == nil {
		t.Error("a record was made in a file")
	}
}
