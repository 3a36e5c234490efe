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
	Only         []string // of Parts
	JSON         string   // file; "-" for Out; empty: none
	Out          io.Writer
	Progress     io.Writer
}

// The parts of a measurement that are no fault.
const (
	partIdle    = "idle"
	partPgbench = "pgbench"
)

// Parts lists what can be measured.
func Parts() []string {
	var names []string
	for _, f := range faults {
		names = append(names, f.Name)
	}
	return append(names, partIdle, partPgbench)
}

// bench is one measurement under way.
type bench struct {
	Options
	began  time.Time
	rig    *rig.Rig
	report Report
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

func (b *bench) wants(part string) bool { return slices.Contains(b.Only, part) }

func (b *bench) measure(ctx context.Context) error {
	status, err := b.healthy(ctx, 0)
	if err != nil {
		return err
	}
	if err := b.outages(ctx, status); err != nil {
		return err
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
	return nil
}

// recoverWithin is how long the cluster has to become as good as new.
const recoverWithin = 60 * time.Second

func (b *bench) healthy(ctx context.Context, after cluster.Epoch) (rig.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, recoverWithin)
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
