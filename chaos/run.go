package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/dev/rig"
	"github.com/understudy-ha/understudy/node"
)

// Options say how long a cluster is hurt, and how.
type Options struct {
	Dir          string // the cluster's folder; what is kept goes beside it
	FirstAddress string
	Bin          string // folder of our binaries; empty: that of this one
	Nodes        int
	Seed         int64
	For          time.Duration // no round begins after this
	Only         []string      // of Kinds
	JSON         bool          // print the report as JSON
	Out          io.Writer
	Progress     io.Writer
}

// recoverWithin is how long a cluster may take, after everything is healed, to
// become as good as new.
const recoverWithin = 120 * time.Second

// ErrViolation is the error of a run that has found what must not be.
var ErrViolation = errors.New("the cluster broke a promise")

// run is one run under way.
type run struct {
	Options
	*arena
	work    *workload
	checked int64 // the windows below it are checked
	report  Report
	hard    error // that ended the run early and says nothing about the cluster
}

// Run makes a cluster, hurts it and checks what its clients saw. The report is
// printed in any case. The error wraps ErrViolation when a promise was broken; then
// all logs are kept.
func Run(ctx context.Context, o Options) (report Report, err error) {
	r := &run{Options: o, report: Report{Seed: o.Seed, At: time.Now().UTC(), Version: node.Version, Nodes: o.Nodes}}
	if err := r.up(ctx); err != nil {
		return r.report, err
	}
	defer func() { err = errors.Join(err, r.down(ctx)) }()
	r.hurt(ctx)
	r.settle()
	if err := r.publish(ctx); err != nil {
		return r.report, err
	}
	if n := len(r.report.Violations); n > 0 {
		return r.report, fmt.Errorf("%w: %d violations with seed %d; everything is kept in %s", ErrViolation, n, o.Seed, r.report.Logs)
	}
	return r.report, r.hard
}

func (r *run) say(format string, args ...any) {
	fmt.Fprintf(r.Progress, "[%7.1fs] %s\n", r.now().Seconds(), fmt.Sprintf(format, args...))
}

func (r *run) up(ctx context.Context) error {
	r.arena = &arena{have: machine(), history: &history{began: time.Now()}}
	opts := dev.UpOptions{
		Dir: r.Dir, Nodes: r.Nodes, FirstAddress: r.FirstAddress, Bin: r.Bin, Prepare: r.have.prepare,
		Options: []string{"minority_after=" + noParts.String()},
	}
	if !r.have.root {
		r.say("not root: partitions and full disks are left out")
	}
	if !r.have.clock {
		r.say("no libfaketime: shifted clocks are left out")
	}
	r.say("seed %d: making a cluster of %d nodes in %s", r.Seed, r.Nodes, r.Dir)
	made, err := rig.Up(ctx, opts)
	if err != nil {
		return err
	}
	r.Rig = made
	return nil
}

// noParts is longer than any cut and what follows it: what a part of the cluster that
// is cut off serves is at risk, and no part of one linearizable history. e2e and the
// simulator look at that.
const noParts = time.Minute

// down takes the cluster down, also when ctx has ended.
func (r *run) down(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	if !r.have.root {
		return r.Rig.Down(ctx)
	}
	killed := r.OnAll(func(n dev.NodeInfo) error { return dev.Kill(ctx, r.Rig.Dir, n.Name, dev.All) })
	return errors.Join(killed, unmount(r.Rig.Dir, r.Rig.Nodes), r.Rig.Down(ctx))
}

// hurt does rounds until the time is up, a promise is broken, or nothing can be
// done any more.
func (r *run) hurt(ctx context.Context) {
	status, err := r.recover(ctx)
	if err == nil {
		r.work, err = newWorkload(ctx, r.history, r.Seed, r.Rig)
	}
	if err != nil {
		r.hard = err
		return
	}
	working, stop := context.WithCancel(ctx)
	done := make(chan error, 2)
	go func() { r.work.run(working); done <- nil }()
	go func() { done <- r.watch(working) }()
	defer func() {
		stop()
		r.hard = errors.Join(r.hard, <-done, <-done)
	}()
	r.say("up; %s is active", status.Active)
	random := rand.New(rand.NewPCG(uint64(r.Seed), 0))
	if err := await(ctx, "the first look at next-master", func() bool { return r.newest().Node != "" }); err != nil {
		r.hard = err
		return
	}
	lots := lots(r.have, r.Only)
	// The time counts from here, not from when the cluster was begun.
	end := time.Now().Add(r.For)
	for number := 1; time.Now().Before(end) && len(r.report.Violations) == 0; number++ {
		if err := r.round(ctx, number, draw(random, lots, r.have)); err != nil {
			r.hard = fmt.Errorf("round %d: %w", number, err)
			return
		}
	}
}

// round does a few faults, heals, waits until the cluster has recovered, and
// checks what was seen.
func (r *run) round(ctx context.Context, number int, steps []Step) error {
	began, from := r.now(), r.len()
	for _, s := range steps {
		if err := r.step(ctx, number, s); err != nil {
			return err
		}
	}
	if err := r.heal(ctx); err != nil {
		return err
	}
	healed := r.now()
	status, err := r.recover(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		r.found(number, Violation{Kind: "not recovered", Message: fmt.Sprintf("%s after everything was healed: %v", recoverWithin, err)})
		return nil
	}
	recovered := r.now()
	if err := r.verify(ctx, number, status); err != nil {
		return err
	}
	longest := outage(r.since(from), began, r.now())
	r.report.Rounds = append(r.report.Rounds, Round{Number: number, RecoveredMs: (recovered - healed).Milliseconds(), OutageMs: longest.Milliseconds()})
	r.say("round %d: recovered after %.1f s, %s is active, epoch %d; the longest outage was %.2f s; %d operations",
		number, (recovered - healed).Seconds(), status.Active, status.Epoch, longest.Seconds(), r.len())
	return nil
}

// step does one fault. That its moment does not come is no error.
func (r *run) step(ctx context.Context, number int, s Step) error {
	node := r.choose(s)
	f := Fault{Round: number, Kind: string(s.Kind), What: fmt.Sprintf("%s %s", node, s.detail()), Began: r.now()}
	r.say("round %d: %s on %s (%s) %s", number, s.Kind, node, s.Role, s.detail())
	err := acts()[s.Kind](ctx, r.arena, s, node)
	f.Ended = r.now()
	switch {
	case errors.Is(err, errMissed):
		f.Missed = err.Error()
		r.say("round %d: missed: %v", number, err)
	case err != nil:
		return fmt.Errorf("%s on %s: %w", s.Kind, node, err)
	}
	r.report.Schedule = append(r.report.Schedule, f)
	return pause(ctx, s.Gap)
}

// recover waits until the cluster is as good as new.
func (r *run) recover(ctx context.Context) (rig.Status, error) {
	within, cancel := context.WithTimeout(ctx, recoverWithin)
	defer cancel()
	return r.AwaitHealthy(within, 0)
}

// verify checks everything that a round has left, on every node.
func (r *run) verify(ctx context.Context, number int, status rig.Status) error {
	first := r.checked
	next, err := r.work.turn(ctx)
	if err != nil {
		return err
	}
	r.checked = next
	keys := keysOf(within(r.all(), first, next))
	limited, cancel := context.WithTimeout(ctx, recoverWithin)
	defer cancel()
	active, others := r.Sides(status.Active)
	held, reads, err := contents(limited, r.history, next, keys, active, others)
	if err != nil {
		return err
	}
	all := r.all()
	for _, c := range held {
		r.found(number, Complete(within(all, 0, next), c)...)
	}
	r.found(number, Linearizable(append(within(all, first, next), reads...))...)
	return nil
}

// keysOf returns the registers of a history.
func keysOf(ops []Op) []string {
	var keys []string
	for _, o := range ops {
		if o.Action != Append {
			keys = append(keys, o.Key)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// found notes violations.
func (r *run) found(number int, list ...Violation) {
	for _, v := range list {
		v.Round = number
		r.report.Violations = append(r.report.Violations, v)
		r.say("VIOLATION: %s: %s", v.Kind, v.Message)
	}
}

// settle checks what is checked over a whole run, and fills in the report.
func (r *run) settle() {
	ops, looks := r.all(), r.allLooks()
	last := 0
	if n := len(r.report.Rounds); n > 0 {
		last = r.report.Rounds[n-1].Number
	}
	r.found(last, Register(looks)...)
	two, found := TwoWriters(ops)
	r.found(last, found...)
	r.report.TwoWritersMs = float64(two.Microseconds()) / 1000
	r.report.Seconds = r.now().Seconds()
	r.report.count(ops, looks)
}

// publish keeps everything where a promise was broken, and prints the report.
func (r *run) publish(ctx context.Context) error {
	if len(r.report.Violations) > 0 || r.hard != nil && ctx.Err() == nil {
		r.report.Logs = filepath.Clean(r.Rig.Dir) + fmt.Sprintf("-seed%d-%s", r.Seed, r.report.At.Format("150405"))
		if err := r.keep(context.WithoutCancel(ctx), r.report.Logs); err != nil {
			r.say("not everything could be kept: %v", err)
		}
	}
	if r.JSON {
		return r.report.json(r.Out)
	}
	r.report.print(r.Out)
	return nil
}
