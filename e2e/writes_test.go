package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/rig"
)

// targets are the databases of the managers, for a writer.
func (g *group) targets() (all []probe.Target) {
	for _, n := range g.nodes {
		if n.Kind == cluster.Manager {
			all = append(all, probe.Target{Node: n.Name, DSN: n.Postgres.DSN + "?sslmode=disable"})
		}
	}
	return all
}

// underWrites lets something happen while a client writes, waits until the
// cluster is healthy again, and checks that every row that was acknowledged is
// on every manager, of which there are three. All nodes are members.
func (g *group) underWrites(t *testing.T, happens func()) (s rig.Status) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*soon)
	defer cancel()
	w, err := probe.Open(ctx, probe.Options{Targets: g.targets(), Name: fmt.Sprintf("%s %d", t.Name(), time.Now().UnixNano())})
	if err != nil {
		t.Fatal(err)
	}
	writing, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- w.Run(writing) }()
	acks := func(after int) {
		t.Helper()
		eventually(t, "writes are acknowledged", func() error {
			if n := len(w.Journal().Acks); n < after+50 {
				return fmt.Errorf("%d were", n)
			}
			return nil
		})
	}
	acks(0)
	happens()
	s = g.healthy(t, g.nodes[0].Name, len(g.nodes))
	acks(len(w.Journal().Acks))
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	var active probe.Target
	var others []probe.Target
	for _, to := range g.targets() {
		if to.Node == s.Active {
			active = to
		} else {
			others = append(others, to)
		}
	}
	findings, err := probe.Verify(ctx, w.Journal(), active, others...)
	if err != nil || len(findings) != 3 {
		t.Errorf("%d nodes looked at: %v", len(findings), err)
	}
	for _, f := range findings {
		if !f.Sound() {
			t.Errorf("%s has %d rows: %d lost, %d twice, %d that cannot be: the first are %v", f.Node, f.Rows, len(f.Lost), len(f.Twice), len(f.Uncalled),
				slices.Concat(f.Lost, f.Twice, f.Uncalled)[:1])
		}
	}
	return s
}
