package e2e

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/config"
)

// A cluster is taken apart: the standbys first, then the last, whose database serves
// on without understudy. A new cluster can then be started on it.
func TestTeardown(t *testing.T) {
	t.Parallel()
	g := hosts(t, "td", "127.40.21.", 2)
	conf := filepath.Join(g.dir, "node1/etc/postgresql")
	before := filesIn(t, conf)
	want(t, g.cluster(t, "node1", "teardown", "--yes"), 1, "not a member of a cluster")
	want(t, g.start(t, "node1"), 0, "is the active node of cluster")
	g.healthy(t, "node1", 1)
	want(t, g.join(t, "node2", g.token(t, "node1"), "node1"), 0, "node2 is a standby of cluster")
	g.healthy(t, "node1", 2)
	if _, err := g.query(t, "node1", "create table kept as select 42 n"); !errors.Is(err, pgx.ErrNoRows) {
		t.Fatal(err)
	}
	g.write(t, "node1", "kept.txt", "as it is")
	g.arrives(t, "kept.txt", "as it is", "node2")

	want(t, g.cluster(t, "node1", "teardown"), 2, "node1 would belong to no cluster any more; --yes says that this is meant")
	want(t, g.cluster(t, "node1", "teardown", "--yes"), 1, "other members: node2", "nodes remove NAME")
	want(t, g.cluster(t, "node1", "nodes", "remove", "node2"), 0)
	g.told(t, "node2", "node1")
	want(t, g.cluster(t, "node2", "teardown", "--yes"), 0, "node2 belongs to no cluster any more")
	want(t, g.cluster(t, "node1", "teardown", "--yes"), 0, "node1 belongs to no cluster any more", "runs as it was found")
	want(t, g.cluster(t, "node1", "teardown", "--yes"), 1, "not a member of a cluster")

	for query, result := range map[string]string{
		"select n::text from kept":                                             "42",
		"select pg_is_in_recovery()::text":                                     "false",
		"select count(*)::text from pg_roles where rolname like 'understudy%'": "0",
		"select count(*)::text from pg_replication_slots":                      "0",
	} {
		eventually(t, query, func() error {
			got, err := g.query(t, "node1", query)
			if err == nil && got != result {
				t.Errorf("%s: %q, want %q", query, got, result)
			}
			return err
		})
	}
	if after := filesIn(t, conf); !slices.Equal(after, before) {
		t.Errorf("PostgreSQL's configuration was %v, and is %v", before, after)
	}
	for _, node := range []string{"node1", "node2"} {
		l := config.Paths(filepath.Join(g.dir, node))
		if left := filesIn(t, l.State); len(left) > 0 {
			t.Errorf("%s: %v is left in %s", node, left, l.State)
		}
		if left := filesIn(t, l.SSL); len(left) > 0 {
			t.Errorf("%s: %v is left in %s", node, left, l.SSL)
		}
		folder := g.node(t, node).Folders[0]
		if left := filesIn(t, folder); !slices.Equal(left, []string{"kept.txt"}) {
			t.Errorf("%s: its folder holds %v", node, left)
		}
		for _, gone := range []string{"consul", "file-sync", "check-runner", "consul-watcher", "handler-runner", "postgres-helper"} {
			if pid := g.node(t, node).Pids[gone]; pid != 0 {
				t.Errorf("%s: %s still runs", node, gone)
			}
		}
	}
	want(t, g.start(t, "node1"), 0, "is the active node of cluster")
	g.healthy(t, "node1", 1)
	if got, err := g.query(t, "node1", "select n::text from kept"); err != nil || got != "42" {
		t.Errorf("in the new cluster: %q, %v", got, err)
	}
}

// filesIn are the names of the files below a folder, but for locks.
func filesIn(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.HasSuffix(path, ".lock") {
			list = append(list, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return list
}
