package handlerrunner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/understudy-ha/understudy/cluster"
)

const (
	promoteWithin = 30 * time.Second
	// gatherWithin is how long a new active in sync_mode available waits for
	// standbys before it opens to clients without them.
	gatherWithin = 3 * time.Second
	gatherPoll   = 2 * time.Millisecond
)

// promote makes this node the active one, for the epoch that it is named for:
// lock, slots and quorum, end of recovery, standbys caught up, sync set published,
// gate opened. Clients are kept out until what they will read is as safe as
// what they will write (trap 32).
func (h *Handler) promote(ctx context.Context) error {
	h.mu.Lock()
	h.attempt = cluster.Unknown
	h.mu.Unlock()
	view, d, db := h.snapshot()
	epoch := view.NextMaster.Epoch
	tl, skip := db.Position.Timeline, skipped(db.Position.Timeline, view.NextMaster.Above)
	leader := cluster.Leader{Node: h.Node, Epoch: epoch, Lines: append(d.on(tl), cluster.Line{Timeline: tl + cluster.Timeline(skip) + 1, Epoch: epoch})}
	ctx, cancel := context.WithTimeout(ctx, view.Options(h.Node).Stretch(promoteWithin))
	defer cancel()
	others := h.others(view)
	mode := view.SyncMode()
	want := cluster.Opening(view, others)
	var lease Lease
	ready, all := errgroup.WithContext(ctx)
	ready.Go(func() (err error) {
		lease, err = h.takeLock(all, leader)
		return err
	})
	ready.Go(func() error { return h.Replication.Slots(all, epoch.Tenure(), others) })
	ready.Go(func() error { return h.Postgres.SetQuorum(all, want) })
	ready.Go(func() error { return h.Postgres.Gate(all, false) })
	if err := ready.Wait(); err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	if skip > 0 {
		if err := h.Divergence.SkipTimelines(ctx, skip); err != nil {
			return fmt.Errorf("promote: %w", err)
		}
	}
	start, err := h.Postgres.Promote(ctx)
	if err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	h.Journal.Write(cluster.EventPromoted, epoch, fmt.Sprintf("%s ended recovery at %s", h.Node, start), start)
	leader.Timeline = start.Timeline
	var quorum cluster.Quorum
	gathered, all := errgroup.WithContext(ctx)
	gathered.Go(func() (err error) {
		quorum, err = h.gather(all, mode, want, start, func() error { return h.offer(all, lease, leader) })
		return err
	})
	gathered.Go(func() error {
		h.keepChanges(all, 0)
		return h.open(start.Timeline)
	})
	gathered.Go(func() (err error) { // only the holder of the lock writes the sync key
		view, err = h.Store.View(all)
		return err
	})
	if err := gathered.Wait(); err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	if err := h.publish(ctx, view, cluster.SyncSet{Epoch: epoch, Leader: h.Node, Members: quorum.Members, K: quorum.K}); err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	// What is acknowledged from here on is the cluster's, and no part's.
	h.moving.Lock()
	err = h.keepSide(nil)
	h.moving.Unlock()
	if err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	if err := h.Postgres.Gate(ctx, true); err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	h.Journal.Write(cluster.EventWritable, epoch, fmt.Sprintf("%s accepts writes, confirmed by %s", h.Node, quorum), quorum)
	leader.Ready = true
	if err := lease.Update(ctx, leader); err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	// Without it a former active that is rewound now would see the old
	// timeline in the control file (trap 19).
	return h.Checkpoint(ctx)
}

// skipped is how many timelines a promotion from tl passes over where the cluster
// is known to have been on timelines up to above: one more than these. PostgreSQL
// may count the last that it passes over among the ancestors of the new one, and a
// node that is on a timeline of that number would then be sent that one, over its own.
func skipped(tl, above cluster.Timeline) int {
	if above <= tl {
		return 0
	}
	return int(above-tl) + 1
}

// promoted ends an attempt. The state follows from what is then observed.
func (h *Handler) promoted(err error) {
	h.mu.Lock()
	h.attempt = cluster.TriOf(err == nil)
	h.mu.Unlock()
	if err != nil {
		h.Log.Error("promotion failed", "error", err)
		h.rest(retryAfter)
	}
}

// open writes down that this node is about to let clients write on a timeline. A
// later promotion that fails does not take that back.
func (h *Handler) open(tl cluster.Timeline) error {
	h.moving.Lock()
	defer h.moving.Unlock()
	h.mu.Lock()
	opened := without(h.durable.Opened, tl)
	h.durable.Opened = append(opened[max(0, len(opened)-keptLines+1):], tl)
	h.mu.Unlock()
	return h.keep()
}

// others are the managers that may become standbys of this one.
func (h *Handler) others(view cluster.View) []string {
	return slices.DeleteFunc(view.Managers(), func(n string) bool { return n == h.Node })
}

// takeLock takes the leader lock and starts the lease. An epoch is tried once:
// that it was, is written down first.
func (h *Handler) takeLock(ctx context.Context, l cluster.Leader) (Lease, error) {
	if err := h.Locks.Fit(ctx); err != nil {
		return nil, fmt.Errorf("take the leader lock: %w", err)
	}
	asked, bound := time.Now(), h.reached(bindAfter)
	lease, err := h.Locks.Acquire(ctx, l, h.ttl(), bound)
	if bound && errors.Is(err, ErrUnfit) { // the servers have not heard that all pass
		bound = false
		lease, err = h.Locks.Acquire(ctx, l, h.ttl(), bound)
	}
	if err != nil {
		return nil, err
	}
	h.tenure.begin(lease, l.Epoch, asked, h.ttl(), bound)
	h.moving.Lock()
	h.mu.Lock()
	h.durable.Tried = l.Epoch
	h.mu.Unlock()
	err = h.embark(l)
	h.moving.Unlock()
	h.Journal.Write(cluster.EventLock, l.Epoch, h.Node+" holds the leader lock", nil)
	return lease, err
}

// gather waits until enough standbys have everything up to the new timeline,
// and returns the quorum that PostgreSQL then waits for. With sync_mode
// available it settles for those there are when its time is over, with strict it
// offers to mend them.
func (h *Handler) gather(ctx context.Context, mode cluster.SyncMode, want cluster.Quorum, start cluster.Position, offer func() error) (cluster.Quorum, error) {
	deadline := time.Now().Add(h.options().Stretch(gatherWithin))
	offered := false
	for want.K > 0 {
		db, err := h.Postgres.Observe(ctx)
		if err != nil {
			return want, err
		}
		there := flushed(db, start.LSN+1) // some of the new timeline: see doubled
		late := !time.Now().Before(deadline)
		if len(there) < want.K && late && mode == cluster.Strict && !offered {
			if err := offer(); err != nil {
				return want, err
			}
			offered = true
		}
		if len(there) < want.K && (mode == cluster.Strict || !late) {
			if err := sleep(ctx, gatherPoll); err != nil {
				return want, fmt.Errorf("wait for standbys to catch up: %w", err)
			}
			continue
		}
		if mode == cluster.Strict || slices.Equal(there, want.Members) {
			return want, nil
		}
		settled := cluster.Quorum{Members: there, K: min(want.K, len(there))}
		return settled, h.Postgres.SetQuorum(ctx, settled)
	}
	return want, nil
}

// offer lets others be mended from this node before it is open to clients. With
// sync_mode strict it opens only when standbys have caught up, and those there
// are may all have forked WAL.
func (h *Handler) offer(ctx context.Context, lease Lease, l cluster.Leader) error {
	if err := h.Checkpoint(ctx); err != nil { // trap 19
		return err
	}
	return lease.Update(ctx, l)
}

// flushed names the standbys that have durably received up to lsn, sorted.
func flushed(db Database, lsn cluster.LSN) []string {
	var names []string
	for _, s := range db.Standbys {
		if s.Flushed >= lsn {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

var errMoved = errors.New("the sync key was changed by another node, or the lock is lost")

// publish writes the sync key, if it is as in view still.
func (h *Handler) publish(ctx context.Context, view cluster.View, s cluster.SyncSet) error {
	lease := h.tenure.held()
	if lease == nil {
		return fmt.Errorf("publish the sync set: %w", errMoved)
	}
	h.settled = false
	ok, err := h.Store.SetSync(ctx, lease.ID(), view.SyncIndex, s)
	h.settled = err == nil // nothing that was begun before finds the key as it was
	if err == nil && !ok {
		err = errMoved
	}
	if err != nil {
		return fmt.Errorf("publish the sync set: %w", err)
	}
	h.Log.Info("sync set published", "epoch", s.Epoch, "members", s.Members, "k", s.K)
	return nil
}
