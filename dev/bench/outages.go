package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/rig"
	"github.com/understudy-ha/understudy/dev/timeline"
)

// fault is something that interrupts writes.
type fault struct {
	Name, Title   string
	Target, Worst time.Duration // wanted median and maximum; 0: none
	Others        string        // measured with the same client on a machine of this kind
	do            func(ctx context.Context, b *bench, w *probe.Writer, s rig.Status) error
}

var faults = []fault{
	{"kill-postgres", "kill -9 of the active's postmaster and children", 500 * time.Millisecond, 0,
		"Patroni 3.0 with Consul 10.8 / 2.4 s; pg_auto_failover 5.1 / 2.8 s", killPostgres},
	{"kill-node", "the active node killed whole", 3 * time.Second, 6 * time.Second,
		"Patroni 11.5 / 6.0 s; pg_auto_failover 53 / 11.5 s", killNode},
	{"set-active", "set-active", 400 * time.Millisecond, 0,
		"Patroni 1.1 s; pg_auto_failover 1.3 s", setActive},
}

func killPostgres(ctx context.Context, b *bench, _ *probe.Writer, s rig.Status) error {
	return dev.Kill(ctx, b.Dir, s.Active, "postgres")
}

// killNode starts the node again when another one takes writes.
func killNode(ctx context.Context, b *bench, w *probe.Writer, s rig.Status) error {
	began := time.Now()
	if err := dev.Kill(ctx, b.Dir, s.Active, dev.All); err != nil {
		return err
	}
	for w.Last().Node == s.Active || w.Last().At.Before(began) {
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("no other node takes writes: %w", err)
		}
	}
	return dev.Start(ctx, b.Dir, s.Active)
}

func setActive(ctx context.Context, b *bench, _ *probe.Writer, s rig.Status) error {
	return b.rig.SetActive(ctx, s.Active, s.Standbys()[0])
}

// breath is for writing before a fault and after all is well again.
const breath = time.Second

// outages does the faults that are wanted under one writer, and then looks for
// every row that it has written.
func (b *bench) outages(ctx context.Context, s rig.Status) error {
	w, err := probe.Open(ctx, probe.Options{Targets: b.rig.Targets(), Name: "bench"})
	if err != nil {
		return err
	}
	writing, stop := context.WithCancel(ctx)
	defer stop()
	wrote := make(chan error, 1)
	go func() { wrote <- w.Run(writing) }()
	var failed error
	for _, f := range faults {
		if !b.wants(f.Name) || failed != nil {
			continue
		}
		s, failed = b.repeat(ctx, f, w, s)
	}
	stop()
	failed = errors.Join(failed, <-wrote)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(failed, b.verify(ctx, w.Journal()))
}

// repeat does one fault again and again, each time to a cluster that is as good
// as new.
func (b *bench) repeat(ctx context.Context, f fault, w *probe.Writer, s rig.Status) (rig.Status, error) {
	out := newOutage(f)
	defer func() { b.report.Outages = append(b.report.Outages, out.done()) }()
	for run := range b.Runs {
		if err := pause(ctx, breath); err != nil {
			return s, err
		}
		raft, err := b.raftLeader(ctx, f, s)
		if err != nil {
			return s, err
		}
		what := timeline.Fault{Title: f.Title, At: time.Now(), Active: s.Active, Epoch: s.Epoch}
		within, cancel := context.WithTimeout(ctx, recoverWithin)
		err = f.do(within, b, w, s)
		cancel()
		if err != nil {
			return s, fmt.Errorf("%s, run %d: %w", f.Name, run+1, err)
		}
		next, err := b.healthy(ctx, s.Epoch)
		if err != nil {
			return next, fmt.Errorf("%s, run %d: %w", f.Name, run+1, err)
		}
		recovered := time.Since(what.At)
		if err := pause(ctx, breath); err != nil {
			return next, err
		}
		gap := w.Journal().Longest(what.At, time.Now())
		events, err := b.rig.Events(ctx, what.At)
		if err != nil {
			return next, fmt.Errorf("%s, run %d: %w", f.Name, run+1, err)
		}
		change, err := timeline.Read(what, events, time.Now())
		if err != nil {
			return next, fmt.Errorf("%s, run %d: %w", f.Name, run+1, err)
		}
		out.add(gap, recovered, change, raft == s.Active)
		b.say("%s %d of %d: %s without a write, %s -> %s, healthy after %s; Consul's leader was %s", f.Name, run+1, b.Runs,
			timeline.Millis(gap.Length()), gap.Before, gap.After, timeline.Millis(recovered), raft)
		s = next
	}
	return s, nil
}

// calmWithin is how long consul-watcher has to move the leader of Consul off the
// active node. It does so when the cluster has been calm for a while, as clusters
// in use are most of the time.
const calmWithin = 20 * time.Second

// raftLeader names the node with the leader of Consul. Before the active node is
// killed whole it waits until that is another one; when it does not become so, the
// fault is done all the same, and the run is marked.
func (b *bench) raftLeader(ctx context.Context, f fault, s rig.Status) (string, error) {
	deadline := time.Now().Add(calmWithin)
	for {
		leader, err := b.rig.RaftLeader(ctx)
		if err == nil && (leader != s.Active || f.Name != "kill-node") || time.Now().After(deadline) {
			return leader, err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return "", err
		}
	}
}

// verify looks for every row on every node.
func (b *bench) verify(ctx context.Context, j probe.Journal) error {
	s, err := b.healthy(ctx, 0)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, recoverWithin)
	defer cancel()
	active, others := b.rig.Sides(s.Active)
	found, err := probe.Verify(ctx, j, active, others...)
	b.report.Writes = writesOf(j, found)
	if err != nil {
		return err
	}
	for _, f := range found {
		if !f.Sound() {
			return fmt.Errorf("acknowledged writes are lost, or others are there: on %s %d are lost, %d there twice, %d should not be there",
				f.Node, len(f.Lost), len(f.Twice), len(f.Uncalled))
		}
	}
	return nil
}
