package handlerrunner

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

const (
	// dropAfter is how long a member of the sync set may be disconnected before
	// the set shrinks without it.
	dropAfter = 2 * time.Second
	// admitWithin is how far behind a standby may be to become a member.
	admitWithin = 16 << 20
	// advanceEvery is how often what all standbys hold is let go of.
	advanceEvery = 15 * time.Second
)

// roster remembers when each standby was last connected.
type roster map[string]time.Time

// update notes who streams now, and returns who should be in the sync set: those
// that have caught up, and members that have not been away for long. A standby that
// holds more than this node has forked, and must not count: see Handler.led.
func (r roster) update(now time.Time, db Database, members []string, patience time.Duration) []string {
	var standbys []string
	for _, s := range db.Standbys {
		if s.Flushed > db.Position.LSN {
			continue
		}
		r[s.Name] = now
		if slices.Contains(members, s.Name) || s.Flushed+admitWithin >= db.Position.LSN {
			standbys = append(standbys, s.Name)
		}
	}
	for _, m := range members {
		if _, known := r[m]; !known {
			r[m] = now // this daemon has just started; it may come yet
		}
		if !slices.Contains(standbys, m) && now.Sub(r[m]) < patience {
			standbys = append(standbys, m)
		}
	}
	slices.Sort(standbys)
	return standbys
}

// maintain keeps what an active node keeps: a slot for every member, the leader
// key, and a sync set of the standbys that there are, one step of
// cluster.PlanSync a round.
func (h *Handler) maintain(ctx context.Context, o cluster.Observation) error {
	ctx, cancel := context.WithTimeout(ctx, lifetime(h.ttl())) // by then the lease may have ended, and the driver must see to that
	defer cancel()
	h.tenure.bind(ctx)
	_, _, db := h.snapshot()
	others := h.others(o.View)
	if !slices.Equal(others, h.slotted) {
		if err := h.Replication.Slots(ctx, o.LeaseEpoch.Tenure(), others); err != nil {
			return err
		}
		h.slotted = others
	}
	h.advance(ctx, db, others)
	if err := h.reopen(ctx, o); err != nil {
		return err
	}
	view := o.View
	if db.Primary != cluster.Yes || view.Sync.Epoch != o.LeaseEpoch {
		return nil
	}
	if !h.settled {
		return h.republish(ctx, o.LeaseEpoch)
	}
	mode := view.SyncMode()
	standbys := h.roster.update(time.Now(), db, view.Sync.Members, o.View.Options("").Stretch(dropAfter))
	standbys = slices.DeleteFunc(standbys, func(n string) bool { return !slices.Contains(others, n) })
	if mode == cluster.Strict {
		standbys = others
	}
	want := cluster.Desired(mode, len(o.View.Managers()), standbys)
	caught := h.caughtUp(db, want)
	step := cluster.PlanSync(view.Sync, db.InEffect, want, caught)
	if step.Apply == nil && step.Publish == nil {
		return nil
	}
	// What was published last may not have come back by the watch yet.
	view, err := h.Store.View(ctx)
	if err != nil {
		return fmt.Errorf("change the sync set: %w", err)
	}
	switch step = cluster.PlanSync(view.Sync, db.InEffect, want, caught); {
	case view.Sync.Epoch != o.LeaseEpoch:
		return errMoved
	case step.Apply != nil:
		h.Log.Info("quorum", "want", step.Apply.String(), "reason", step.Reason)
		if err := h.Postgres.SetQuorum(ctx, *step.Apply); err != nil {
			return err
		}
		h.changed = 0
		h.wake()
	case step.Publish != nil:
		if err := h.publish(ctx, view, *step.Publish); err != nil {
			return err
		}
		h.wake()
	}
	return nil
}

// republish publishes the sync set as it is. A publication that was given up may yet be
// carried out, long after: as long as the key is as it was. Until that is out of the
// question the quorum is not changed, because either of the two sets may count.
func (h *Handler) republish(ctx context.Context, epoch cluster.Epoch) error {
	view, err := h.Store.View(ctx)
	if err != nil {
		return fmt.Errorf("publish the sync set: %w", err)
	}
	if view.Sync.Epoch != epoch {
		return errMoved
	}
	if err := h.publish(ctx, view, view.Sync); err != nil {
		return err
	}
	h.wake()
	return nil
}

// advance lets go of the changes that every standby holds, now and then.
func (h *Handler) advance(ctx context.Context, db Database, others []string) {
	all := db.Position.LSN
	for _, name := range others {
		i := slices.IndexFunc(db.Standbys, func(s Downstream) bool { return s.Name == name })
		if i < 0 {
			return
		}
		all = min(all, db.Standbys[i].Flushed)
	}
	if time.Since(h.advanced) < advanceEvery {
		return
	}
	h.advanced = time.Now()
	h.job.start(ctx, cluster.Maintain, func(ctx context.Context) error {
		h.keepChanges(ctx, all)
		return nil
	}, nil)
}

// keepChanges keeps what may be lost. Without it an export falls back on a copy
// of the directory, so an error is no reason to stop.
func (h *Handler) keepChanges(ctx context.Context, confirmed cluster.LSN) {
	if err := h.Divergence.Keep(ctx, confirmed); err != nil && ctx.Err() == nil {
		h.Log.Warn("row changes are not all kept; an export would copy the directory", "error", err)
	}
}

// reopen takes back the word of a hand-over that broke off before anything was
// stopped: the registry may have heard it and its answer was lost.
func (h *Handler) reopen(ctx context.Context, o cluster.Observation) error {
	l, lease := o.View.Leader, h.tenure.held()
	if l.Ready || !l.Held || l.Node != h.Node || l.Epoch != o.LeaseEpoch || lease == nil {
		return nil
	}
	return lease.Update(ctx, cluster.Leader{Node: h.Node, Epoch: l.Epoch, Ready: true, Timeline: l.Timeline, Lines: l.Lines})
}

// caughtUp says whether k of the wanted members hold everything from before the
// quorum in effect was set. The position is taken when it is first asked for,
// which is after the change, so it errs to the late side.
func (h *Handler) caughtUp(db Database, want cluster.Quorum) bool {
	if !db.InEffect.Equal(want) {
		return false
	}
	if h.changed == 0 {
		h.changed = db.Position.LSN
	}
	there := flushed(db, h.changed)
	return len(there)-len(without(there, want.Members...)) >= want.K
}

func without[T comparable](all []T, drop ...T) []T {
	return slices.DeleteFunc(slices.Clone(all), func(n T) bool { return slices.Contains(drop, n) })
}
