package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/rig"
	"github.com/understudy-ha/understudy/dev/timeline"
)

// breath is for writing before a fault and after all is well again.
const breath = time.Second

// outages does the faults that are wanted under one writer, and then looks for
// every row that was written.
func (b *bench) outages(ctx context.Context, s rig.Status) error {
	if !slices.ContainsFunc(faults, func(f fault) bool { return b.wants(f.Name) }) {
		return nil
	}
	w, err := b.open(ctx, "outages")
	if err != nil {
		return err
	}
	writing := run(ctx, w)
	var failed error
	var journals []probe.Journal
	for _, f := range faults {
		if !b.wants(f.Name) || failed != nil {
			continue
		}
		var more []probe.Journal
		s, more, failed = b.repeat(ctx, f, w, s)
		journals = append(journals, more...)
	}
	wrote, err := writing.end()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(failed, err, b.verify(ctx, append(wrote, journals...)))
}

// repeat does one fault again and again, each time to a cluster that is as good
// as new. It returns the journals of the writers that watched it.
func (b *bench) repeat(ctx context.Context, f fault, w *probe.Writer, s rig.Status) (next rig.Status, journals []probe.Journal, err error) {
	out := newOutage(f)
	defer func() { b.report.Outages = append(b.report.Outages, *out) }()
	for n := range b.Runs {
		var watched []probe.Journal
		s, watched, err = b.once(ctx, f, w, s, out)
		journals = append(journals, watched...)
		if err != nil {
			return s, journals, fmt.Errorf("%s, run %d: %w", f.Name, n+1, err)
		}
		b.say("%s %d of %d: %s", f.Name, n+1, b.Runs, out.last)
	}
	return s, journals, nil
}

// once does one fault and waits until the cluster is as good as new.
func (b *bench) once(ctx context.Context, f fault, w *probe.Writer, s rig.Status, out *Outage) (next rig.Status, journals []probe.Journal, err error) {
	if err := pause(ctx, breath); err != nil {
		return s, nil, err
	}
	raft, err := b.raftLeader(ctx, f.calm, s)
	if err != nil {
		return s, nil, err
	}
	var lasts time.Duration
	if f.lasts != nil {
		lasts = f.lasts(b.Options)
	}
	var watch *writers
	if f.watched {
		if watch, err = b.watchAll(ctx, 0, lasts+recoverWithin); err != nil {
			return s, nil, err
		}
		if err := pause(ctx, breath); err != nil {
			_, _ = watch.end()
			return s, nil, err
		}
	}
	what := timeline.Fault{Title: f.Title, At: time.Now(), Active: s.Active, Epoch: s.Epoch}
	next, err = b.hurt(ctx, f, w, s, lasts)
	recovered := time.Since(what.At)
	if err == nil {
		err = pause(ctx, breath)
	}
	journals, ended := watch.end()
	if err := errors.Join(err, ended); err != nil {
		return next, journals, err
	}
	own := w.Journal()
	gap := own.Longest(what.At, time.Now())
	change, err := b.change(ctx, what)
	if err != nil {
		return next, journals, err
	}
	m := measurement{gap: gap, healthy: recovered, change: change, active: s.Active, raft: raft, moved: next.Epoch != s.Epoch}
	if f.watched {
		two := b.twoWriters(append([]probe.Journal{own}, journals...))
		m.twoWriters = &two
	}
	out.add(m)
	return next, journals, nil
}

// hurt does a fault and waits until the cluster has recovered from it.
func (b *bench) hurt(ctx context.Context, f fault, w *probe.Writer, s rig.Status, lasts time.Duration) (rig.Status, error) {
	within, cancel := context.WithTimeout(ctx, lasts+recoverWithin)
	defer cancel()
	if err := f.do(within, b, w, s); err != nil {
		return s, err
	}
	after := s.Epoch
	if f.stays {
		after = 0
	}
	return b.healthy(ctx, after)
}

// change reads what became of a fault.
func (b *bench) change(ctx context.Context, what timeline.Fault) (timeline.Change, error) {
	events, err := b.rig.Events(ctx, what.At)
	if err != nil {
		return timeline.Change{}, err
	}
	return timeline.Read(what, events, time.Now())
}

// calmWithin is how long consul-watcher has to move the leader of Consul off the
// active node. It does so when the cluster has been calm for a while, as clusters
// in use are most of the time.
const calmWithin = 20 * time.Second

// raftLeader names the node with the leader of Consul. Where calm is asked for it
// waits until that is not the active one; when it does not become so, the fault is
// done all the same, and the run is marked.
func (b *bench) raftLeader(ctx context.Context, calm bool, s rig.Status) (string, error) {
	deadline := time.Now().Add(calmWithin)
	for {
		leader, err := b.rig.RaftLeader(ctx)
		if err == nil && (leader != s.Active || !calm) || time.Now().After(deadline) {
			return leader, err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return "", err
		}
	}
}
