package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/timeline"
)

// writers are writers that run together.
type writers struct {
	list []*probe.Writer
	stop context.CancelFunc
	done chan error
}

// run lets writers write until they are ended.
func run(ctx context.Context, list ...*probe.Writer) *writers {
	ctx, stop := context.WithCancel(ctx)
	g := &writers{list: list, stop: stop, done: make(chan error, len(list))}
	for _, w := range list {
		go func() { g.done <- w.Run(ctx) }()
	}
	return g
}

// end returns what all have done. It may be called on none.
func (g *writers) end() (journals []probe.Journal, err error) {
	if g == nil {
		return nil, nil
	}
	g.stop()
	for range g.list {
		err = errors.Join(err, <-g.done)
	}
	for _, w := range g.list {
		journals = append(journals, w.Journal())
	}
	return journals, err
}

// open returns the writer whose outages are measured. It goes to whichever node
// takes writes.
func (b *bench) open(ctx context.Context, name string) (*probe.Writer, error) {
	return probe.Open(ctx, probe.Options{Targets: b.rig.Targets(), Name: name})
}

const (
	// watchEvery is the pause between two writes of one that stays with its node,
	// and between two looks at a node that takes none.
	watchEvery = 20 * time.Millisecond
	// idsEach is how many ids a writer that stays with its node may use.
	idsEach = 1 << 32
)

// watchAll has every node written to for itself, whatever the others say: in
// sessions that are given up when they have not answered within each of the given
// times. A long one finds out what a node does with a session that it has had since
// before it stood still. The table has to be there.
func (b *bench) watchAll(ctx context.Context, limits ...time.Duration) (*writers, error) {
	var list []*probe.Writer
	for _, t := range b.rig.Targets() {
		for _, limit := range limits {
			b.watchers++
			w, err := probe.Open(ctx, probe.Options{Targets: []probe.Target{t}, Name: fmt.Sprintf("%s %d", t.Node, b.watchers),
				Every: watchEvery, Limit: limit, Pause: watchEvery, First: b.watchers * idsEach})
			if err != nil {
				return nil, err
			}
			list = append(list, w)
		}
	}
	return run(ctx, list...), nil
}

// twoWriters returns for how long two databases acknowledged writes.
func (b *bench) twoWriters(journals []probe.Journal) (total time.Duration) {
	var writes []probe.Confirmed
	for _, j := range journals {
		writes = append(writes, j.Confirmed(b.began)...)
	}
	for _, o := range probe.Overlaps(probe.Reigns(writes)) {
		total += o.Lasted
		b.say("%s on timeline %s and %s on timeline %s both acknowledged writes for %s",
			o.A.Node, o.A.Timeline, o.B.Node, o.B.Timeline, timeline.Millis(o.Lasted))
	}
	return total
}

// verify looks for every row of the journals on every node.
func (b *bench) verify(ctx context.Context, journals []probe.Journal) error {
	s, err := b.healthy(ctx, 0)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, recoverWithin)
	defer cancel()
	if b.report.Writes == nil {
		b.report.Writes = &Writes{}
	}
	active, others := b.rig.Sides(s.Active)
	for _, j := range journals {
		found, err := probe.Verify(ctx, j, active, others...)
		b.report.Writes.add(j, found)
		if err != nil {
			return err
		}
		for _, f := range found {
			if !f.Sound() {
				return fmt.Errorf("acknowledged writes are lost, or others are there: of %q on %s %d are lost, %d there twice, %d should not be there",
					j.Writer, f.Node, len(f.Lost), len(f.Twice), len(f.Uncalled))
			}
		}
	}
	return nil
}
