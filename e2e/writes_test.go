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

// targets are the databases of the managers, for a writer; or of the named ones.
func (g *group) targets(names ...string) (all []probe.Target) {
	for _, n := range g.nodes {
		if n.Kind == cluster.Manager && (len(names) == 0 || slices.Contains(names, n.Name)) {
			all = append(all, probe.Target{Node: n.Name, DSN: n.Postgres.DSN + "?sslmode=disable"})
		}
	}
	return all
}

// writing is a client that writes in the background.
type writing struct {
	*probe.Writer
	stop  context.CancelFunc
	ended chan error
}

// writes begins to write into whichever of the named managers takes writes, or of
// all, and waits until some are acknowledged.
func (g *group) writes(t *testing.T, names ...string) *writing {
	t.Helper()
	return writesTo(t, g.targets(names...))
}

// writesTo is writes, into whichever of the targets takes writes.
func writesTo(t *testing.T, targets []probe.Target) *writing {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*soon)
	w, err := probe.Open(ctx, probe.Options{Targets: targets, Name: fmt.Sprintf("%s %d", t.Name(), time.Now().UnixNano())})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	c := &writing{w, cancel, make(chan error, 1)}
	t.Cleanup(cancel)
	go func() { c.ended <- w.Run(ctx) }()
	c.goOn(t)
	return c
}

// goOn waits until more writes are acknowledged.
func (c *writing) goOn(t *testing.T) {
	t.Helper()
	after := len(c.Journal().Acks)
	eventually(t, "writes are acknowledged", func() error {
		if n := len(c.Journal().Acks); n < after+50 {
			return fmt.Errorf("%d were", n)
		}
		return nil
	})
}

// end ends the writing and returns what was done.
func (c *writing) end(t *testing.T) probe.Journal {
	t.Helper()
	c.stop()
	if err := <-c.ended; err != nil {
		t.Error(err)
	}
	return c.Journal()
}

// sound checks that every row that was acknowledged is on every manager, and no
// row that was refused is on any. All of them are up.
func (g *group) sound(t *testing.T, s rig.Status, j probe.Journal) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	findings, err := probe.Verify(ctx, j, g.targets(s.Active)[0], g.targets(s.Standbys()...)...)
	if err != nil || len(findings) != len(g.targets()) {
		t.Errorf("%d nodes looked at: %v", len(findings), err)
	}
	for _, f := range findings {
		if !f.Sound() {
			t.Errorf("%s has %d rows: %d lost, %d twice, %d that cannot be: the first are %v", f.Node, f.Rows, len(f.Lost), len(f.Twice), len(f.Uncalled),
				slices.Concat(f.Lost, f.Twice, f.Uncalled)[:1])
		}
	}
}

// underWrites lets something happen while a client writes, waits until the
// cluster is healthy again, and checks that every row that was acknowledged is
// on every manager. All nodes are members.
func (g *group) underWrites(t *testing.T, happens func()) (s rig.Status) {
	t.Helper()
	w := g.writes(t)
	happens()
	s = g.healthy(t, g.nodes[0].Name, len(g.nodes))
	w.goOn(t)
	g.sound(t, s, w.end(t))
	return s
}
