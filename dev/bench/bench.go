// Package bench measures a cluster on this machine: the outages that its clients
// see, what its daemons cost at rest, and whether PostgreSQL is as fast in it as
// without.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/dev/rig"
)

// Options say what is measured, and where.
type Options struct {
	Dir          string
	FirstAddress string
	Bin          string // folder of our binaries; empty: that of this one
	Runs         int
	Only         []string      // of Parts; empty: all that can be done here but those that need much disk
	ThawAfter    time.Duration // a node that is frozen is thawed
	JSON         string        // file; "-" for Out; empty: none
	Out          io.Writer
	Progress     io.Writer
}

// The parts of a measurement that are no fault.
const (
	partMinority = "minority"
	partIdle     = "idle"
	partPgbench  = "pgbench"
)

// Parts lists what can be measured.
func Parts() []string {
	var names []string
	for _, f := range faults {
		names = append(names, f.Name)
	}
	names = append(names, partMinority, partIdle, partPgbench)
	for _, d := range databases {
		names = append(names, d.part)
	}
	return names
}

// bench is one measurement under way.
type bench struct {
	Options
	began    time.Time
	rig      *rig.Rig
	report   Report
	watchers int64 // that there have been
}

// Run measures, and prints what was measured, also when it could not be
// completed. The cluster is taken down in any case. Speed is no error; a loss is.
func Run(ctx context.Context, o Options) (err error) {
	b := &bench{Options: o, began: time.Now()}
	b.report = Report{At: b.began.UTC(), Machine: machine(), Runs: o.Runs}
	b.say("making a cluster of three nodes in %s", o.Dir)
	b.rig, err = rig.Up(ctx, dev.UpOptions{Dir: o.Dir, FirstAddress: o.FirstAddress, Bin: o.Bin})
	if err != nil {
		return err
	}
	b.report.MadeMs = time.Since(b.began).Milliseconds()
	defer func() { err = errors.Join(err, b.rig.Down(ctx)) }()
	measured := b.measure(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(measured, b.publish())
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.Progress, "[%6.1fs] %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

func (b *bench) wants(part string) bool {
	if len(b.Only) > 0 {
		return slices.Contains(b.Only, part)
	}
	return !slices.ContainsFunc(databases, func(d database) bool { return d.part == part })
}

func (b *bench) measure(ctx context.Context) error {
	status, err := b.healthy(ctx, 0)
	if err != nil {
		return err
	}
	if err := b.outages(ctx, status); err != nil {
		return err
	}
	if b.wants(partMinority) {
		err := b.minority(ctx)
		if errors.Is(err, dev.ErrCannotCut) && len(b.Only) == 0 {
			b.say("the minority is left out: %v", err)
		} else if err != nil {
			return fmt.Errorf("measure the minority: %w", err)
		}
	}
	if b.wants(partIdle) {
		if err := b.idle(ctx); err != nil {
			return fmt.Errorf("measure the daemons at rest: %w", err)
		}
	}
	if b.wants(partPgbench) {
		if err := b.pgbench(ctx); err != nil {
			return fmt.Errorf("measure pgbench: %w", err)
		}
	}
	if err := b.rejoins(ctx); err != nil {
		return fmt.Errorf("measure the return of a crashed node: %w", err)
	}
	return nil
}

// recoverWithin is how long the cluster has to become as good as new.
const recoverWithin = 60 * time.Second

func (b *bench) healthy(ctx context.Context, after cluster.Epoch) (rig.Status, error) {
	return b.healthyWithin(ctx, recoverWithin, after)
}

func (b *bench) healthyWithin(ctx context.Context, d time.Duration, after cluster.Epoch) (rig.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return b.rig.AwaitHealthy(ctx, after)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
