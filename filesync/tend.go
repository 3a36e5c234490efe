package filesync

import (
	"context"
	"time"

	"github.com/syncthing/syncthing/lib/db"
	"github.com/syncthing/syncthing/lib/model"
	"github.com/syncthing/syncthing/lib/protocol"
)

// counts is what the index says about one folder.
type counts struct {
	own    int64 // highest sequence that this node announces
	theirs int64 // highest sequence of the active node that has arrived
	items  int
	need   int
	edited int
	ahead  bool // the active lacks something that this node announces; looked at while alone
}

func (e *Engine) counts(id string, active protocol.DeviceID) (counts, error) {
	snap, err := e.model.DBSnapshot(id)
	if err != nil {
		return counts{}, err
	}
	defer snap.Release()
	return counts{
		own:    announced(snap),
		theirs: snap.Sequence(active),
		items:  snap.LocalSize().TotalItems(),
		need:   snap.NeedSize(protocol.LocalDeviceID).TotalItems(),
		edited: snap.ReceiveOnlyChangedSize().TotalItems(),
	}, nil
}

// announced is the highest sequence that peers will ever hear of. The counter
// can be ahead of it, where the latest entry was dropped from the index.
func announced(snap *db.Snapshot) int64 {
	atLeast := func(seq int64) (found bool) {
		snap.WithHaveSequence(seq, func(protocol.FileInfo) bool { found = true; return false })
		return found
	}
	low, high := int64(0), snap.Sequence(protocol.LocalDeviceID) // the answer is in [low, high]
	if high == 0 || atLeast(high) {
		return high
	}
	for high--; low < high; {
		if mid := low + (high-low+1)/2; atLeast(mid) {
			low = mid
		} else {
			high = mid - 1
		}
	}
	return low
}

// state is what one look at the engine uses throughout.
type state struct {
	role      Role
	activeID  protocol.DeviceID
	connected bool
	heard     bool
	alone     bool
	all       []counts // as folders; zero where err
	errs      []error
}

// look reads the index of every folder.
func (e *Engine) look() state {
	e.mu.Lock()
	s := state{role: e.role, alone: e.alone}
	if e.held {
		s.role = Unknown
	}
	for _, p := range e.peers {
		if p.Name == e.active {
			s.activeID = p.id
		}
	}
	published, known := e.published.Sequence, e.published.Sending && e.published.Epoch == e.epoch
	if e.role == Preparing {
		// The epoch is the next one; what counts is what the last active said.
		known = e.published.Sending
	}
	e.mu.Unlock()

	var arrived int64
	for _, f := range e.folders {
		c, err := e.counts(f.ID, s.activeID)
		c.ahead = s.alone && e.activeNeeds(f.ID, s.activeID)
		s.all, s.errs = append(s.all, c), append(s.errs, err)
		arrived += c.theirs
	}
	s.connected = s.activeID != protocol.EmptyDeviceID && e.model.ConnectedTo(s.activeID)
	s.heard = known && arrived >= published
	return s
}

func (e *Engine) observe(s state, i int) observation {
	f, c := e.folders[i], s.all[i]
	name, _, err := e.model.State(f.ID)
	e.mu.Lock()
	defer e.mu.Unlock()
	return observation{
		role: s.role, connected: s.connected, heard: s.heard,
		idle:  err == nil && s.errs[i] == nil && name == model.FolderIdle.String() && missing(f.Folder) == "",
		ready: f.ready, last: f.last,
		items: c.items, need: c.need, changed: c.edited,
	}
}

// tend keeps the folders as decide wants them.
func (e *Engine) tend(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-e.poke:
		}
		s := e.look()
		calm := s.role == Receiving
		for i, f := range e.folders {
			o := e.observe(s, i)
			if e.revive(f) {
				calm = false
				continue
			}
			do, why := decide(o)
			if do == rest {
				e.mu.Lock()
				if o.need == 0 && o.changed == 0 {
					f.tries = 0
				}
				e.mu.Unlock()
			} else if e.due(f) {
				e.act(f, do, why)
			}
			calm = calm && settled(o, s.all[i].ahead)
		}
		if calm && s.alone {
			e.join(ctx)
		}
	}
}

// revive has a folder scanned whose error may have gone, and says whether the
// folder has one.
func (e *Engine) revive(f *folder) bool {
	_, _, err := e.model.State(f.ID)
	if err != nil && missing(f.Folder) == "" && e.due(f) {
		e.model.DelayScan(f.ID, 0)
	}
	return err != nil
}

// due spaces repeated attempts at one folder: at once, then at growing
// distances up to half a minute, because some entries cannot be mended.
func (e *Engine) due(f *folder) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	if now.Before(f.next) {
		return false
	}
	f.next = now.Add(min(30*time.Second, 50*time.Millisecond<<min(f.tries, 10)))
	f.tries++
	return true
}

func (e *Engine) act(f *folder, do action, why string) {
	e.mu.Lock()
	f.last = false
	epoch := e.epoch
	e.mu.Unlock()
	if do == override {
		e.log.Warn("the active's files prevail", "folder", f.ID, "reason", why, "epoch", epoch, "missing_here", e.missingHere(f.ID))
		e.model.Override(f.ID)
		return
	}
	e.log.Warn("changes made here are kept aside and reverted", "folder", f.ID, "reason", why, "epoch", epoch,
		"kept_in", e.versions(f.ID))
	e.model.Revert(f.ID)
}

// missingHere names up to ten files that others hold and this node does not.
func (e *Engine) missingHere(id string) []string {
	snap, err := e.model.DBSnapshot(id)
	if err != nil {
		return nil
	}
	defer snap.Release()
	var names []string
	snap.WithNeedTruncated(protocol.LocalDeviceID, func(f protocol.FileInfo) bool {
		if have, ok := snap.Get(protocol.LocalDeviceID, f.Name); !f.IsDeleted() && (!ok || have.IsDeleted()) {
			names = append(names, f.Name)
		}
		return len(names) < 10
	})
	return names
}

// activeNeeds says whether the active lacks, as far as is known here, anything
// that this node announces.
func (e *Engine) activeNeeds(id string, active protocol.DeviceID) bool {
	snap, err := e.model.DBSnapshot(id)
	if err != nil {
		return true
	}
	defer snap.Release()
	if snap.NeedSize(active).TotalItems() > 0 {
		return true
	}
	needs := false
	snap.WithNeedTruncated(active, func(protocol.FileInfo) bool { needs = true; return false })
	return needs
}

// join lets the other peers in, once the active and this node agree.
func (e *Engine) join(ctx context.Context) {
	e.mu.Lock()
	ok := e.role == Receiving && !e.held && e.alone
	if ok {
		e.alone = false
	}
	e.mu.Unlock()
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := e.apply(ctx, false); err != nil {
		e.log.Warn("cannot connect to all peers", "err", err)
	}
}
