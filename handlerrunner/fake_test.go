package handlerrunner

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

var (
	_ Store = (*fakeStore)(nil)
	_ Locks = (*fakeLocks)(nil)
	_ Lease = (*fakeLease)(nil)
)

var (
	errUnreachable = errors.New("the registry cannot be reached")
	errForeign     = errors.New("the registry holds another cluster")
	errSuperseded  = errors.New("superseded by a later decision")
	errLocked      = errors.New("the leader lock is held")
	errCheckFails  = errors.New("a health check of the leader's session is failing")
)

// registry is the shared state: keys with an index for compare-and-set, and
// sessions that fall when they are not renewed for twice their TTL, when a
// check of their node fails, or when the story says so. The world's lock guards
// it.
type registry struct {
	w        *world
	view     cluster.View
	index    uint64
	sessions map[string]*session
	made     int
	changed  chan struct{} // closed at the next change
	foreign  bool          // what is there is not this cluster
	down     bool          // it has no leader, and ends no sessions
	lingers  bool          // the next publication of the sync set is not answered
	late     func()        // carries it out
}

type session struct {
	id    string
	node  string
	ttl   time.Duration
	ends  *time.Timer
	bound bool // to the checks of its node
}

func newRegistry(w *world) *registry {
	return &registry{w: w, sessions: map[string]*session{}, changed: make(chan struct{}), view: cluster.View{
		Info:  &cluster.Info{ID: "story", SystemID: systemID, Options: cluster.Options{}},
		Nodes: map[string]cluster.Node{}, Removed: map[string]cluster.Tombstone{},
	}}
}

// touch makes a change known to whoever watches.
func (r *registry) touch() uint64 {
	r.index++
	close(r.changed)
	r.changed = make(chan struct{})
	return r.index
}

// copy is the view as a reader gets it: what comes later does not change it.
func (r *registry) copy() cluster.View {
	v := r.view
	v.Index = r.index
	info := *r.view.Info
	info.Options = maps.Clone(info.Options)
	v.Info, v.Nodes, v.Removed = &info, maps.Clone(v.Nodes), maps.Clone(v.Removed)
	return v
}

// drop ends a session, and with it the lock.
func (r *registry) drop(id string) {
	s := r.sessions[id]
	if s == nil {
		return
	}
	s.ends.Stop()
	delete(r.sessions, id)
	if r.view.Leader.Session == id {
		r.view.Leader.Session, r.view.Leader.Held = "", false
		r.view.LeaderIndex = r.touch()
	}
}

// checks ends the sessions of nodes whose PostgreSQL was seen to be gone, or
// whose disk fails, where they are bound to that. A node that is dead, frozen or cut
// off tells nothing.
func (r *registry) checks() {
	for _, id := range slices.Sorted(maps.Keys(r.sessions)) {
		if s := r.sessions[id]; s.bound && r.w.hosts[s.node].speaks() && !r.w.hosts[s.node].fit() {
			r.drop(id)
		}
	}
}

// tellLate ends the sessions that are bound to the checks of a host that passes them.
func (r *registry) tellLate(h *host) {
	for _, id := range slices.Sorted(maps.Keys(r.sessions)) {
		if s := r.sessions[id]; s.bound && s.node == h.name {
			r.drop(id)
		}
	}
}

// fit says that no health check of the host fails, by its agent's word.
func (h *host) fit() bool { return h.pg.running && h.pg.disk == "" && !h.expired }

// failing is what the health checks say.
func (h *host) failing(ctx context.Context, node string) (map[string]string, error) {
	r, err := (&fakeStore{h}).reach(ctx)
	if err != nil {
		return nil, err
	}
	defer h.w.mu.Unlock()
	fails := map[string]string{}
	if o := r.w.hosts[node]; o.speaks() && !o.pg.running {
		fails[string(cluster.CheckAnswer)] = "connection refused"
	}
	return fails, nil
}

// fakeStore is the registry as one host reaches it.
type fakeStore struct{ h *host }

// reach waits for the network and takes the world's lock. Without an error the
// caller unlocks it.
func (s *fakeStore) reach(ctx context.Context) (*registry, error) {
	if err := s.h.pause(ctx, s.h.latency); err != nil {
		return nil, err
	}
	w := s.h.w
	w.mu.Lock()
	var err error
	switch {
	case w.sim == nil && !s.h.speaks():
		err = errUnreachable
	case w.reg.foreign:
		err = errForeign
	}
	if err != nil {
		w.mu.Unlock()
		return nil, err
	}
	return w.reg, nil
}

func (s *fakeStore) View(ctx context.Context) (cluster.View, error) {
	r, err := s.reach(ctx)
	if err != nil {
		return cluster.View{}, err
	}
	defer s.h.w.mu.Unlock()
	return r.copy(), nil
}

func (s *fakeStore) Watch(ctx context.Context, see func(cluster.View, bool)) error {
	seen, was := uint64(0), cluster.Unknown
	for {
		s.h.w.mu.Lock()
		changed, index := s.h.w.reg.changed, s.h.w.reg.index
		s.h.w.mu.Unlock()
		v, err := s.View(ctx)
		if s.h.lag > 0 {
			_ = sleep(ctx, s.h.lag)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if ok := cluster.TriOf(err == nil); ok != was || index != seen {
			seen, was = index, ok
			see(v, err == nil)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (s *fakeStore) SetNextMaster(ctx context.Context, seen cluster.View, a cluster.Assignment) (bool, error) {
	r, err := s.reach(ctx)
	if err != nil {
		return false, err
	}
	defer s.h.w.mu.Unlock()
	s.h.w.names = append(s.h.w.names, a)
	if seen.NextMasterIndex != r.view.NextMasterIndex || seen.LeaderIndex != r.view.LeaderIndex {
		return false, nil
	}
	if a.Epoch <= r.view.NextMaster.Epoch {
		return false, fmt.Errorf("epoch %d is not above %d", a.Epoch, r.view.NextMaster.Epoch)
	}
	r.view.NextMaster, r.view.NextMasterIndex = a, r.touch()
	s.h.w.note("", "elected %s for epoch %d: %s", a.Node, a.Epoch, a.Reason)
	return true, nil
}

func (s *fakeStore) SetSync(ctx context.Context, session string, index uint64, set cluster.SyncSet) (bool, error) {
	r, err := s.reach(ctx)
	if err != nil {
		return false, err
	}
	defer s.h.w.mu.Unlock()
	write := func() bool {
		if index != r.view.SyncIndex || r.view.Leader.Session != session || session == "" {
			return false
		}
		r.view.Sync, r.view.SyncIndex = set, r.touch()
		s.h.w.note("", "sync set of %s: %d of %v", set.Leader, set.K, set.Members)
		s.h.w.flow()
		return true
	}
	if r.lingers {
		r.lingers, r.late = false, func() { write() }
		s.h.w.mu.Unlock()
		<-ctx.Done()
		s.h.w.mu.Lock()
		return false, ctx.Err()
	}
	return write(), nil
}

type fakeLocks struct{ h *host }

func (l *fakeLocks) Fit(context.Context) error {
	l.h.w.mu.Lock()
	defer l.h.w.mu.Unlock()
	if !l.h.fit() {
		return ErrUnfit
	}
	return nil
}

func (l *fakeLocks) Acquire(ctx context.Context, value cluster.Leader, ttl time.Duration, bound bool) (Lease, error) {
	r, err := (&fakeStore{l.h}).reach(ctx)
	if err != nil {
		return nil, err
	}
	defer l.h.w.mu.Unlock()
	switch named := r.view.NextMaster; {
	case named.Node != value.Node || named.Epoch != value.Epoch:
		return nil, errSuperseded
	case r.view.Leader.Held:
		return nil, errLocked
	case bound && !l.h.fit():
		return nil, ErrUnfit
	}
	s := r.session(l.h.name, ttl)
	s.bound = bound
	value.Held, value.Session = true, s.id
	r.view.Leader, r.view.LeaderIndex = value, r.touch()
	return newFakeLease(l.h, s.id), nil
}

// session makes one.
func (r *registry) session(node string, ttl time.Duration) *session {
	r.made++
	s := &session{id: fmt.Sprintf("session-%d", r.made), node: node, ttl: ttl}
	s.ends = time.AfterFunc(2*ttl, func() {
		r.w.mu.Lock()
		defer r.w.mu.Unlock()
		if !r.down {
			r.drop(s.id)
		}
	})
	r.sessions[s.id] = s
	return s
}

func (l *fakeLocks) Adopt(ctx context.Context, epoch cluster.Epoch) (Lease, error) {
	r, err := (&fakeStore{l.h}).reach(ctx)
	if err != nil {
		return nil, err
	}
	held := r.view.Leader
	l.h.w.mu.Unlock()
	if !held.Held || held.Node != l.h.name || held.Epoch != epoch {
		return nil, fmt.Errorf("adopt: %w", ErrSessionGone)
	}
	lease := newFakeLease(l.h, held.Session)
	return lease, lease.Renew(ctx)
}

func (l *fakeLocks) Renew(ctx context.Context, session string) error {
	return newFakeLease(l.h, session).Renew(ctx)
}

type fakeLease struct {
	h  *host
	id atomic.Value // string
}

func newFakeLease(h *host, session string) *fakeLease {
	l := &fakeLease{h: h}
	l.id.Store(session)
	return l
}

func (l *fakeLease) ID() string { return l.id.Load().(string) }

// held is reach for the holder of the lock.
func (l *fakeLease) held(ctx context.Context) (*registry, *session, error) {
	r, err := (&fakeStore{l.h}).reach(ctx)
	if errors.Is(err, errForeign) {
		l.h.w.mu.Lock() // the session is not among the keys
		r, err = l.h.w.reg, nil
	}
	if err != nil {
		return nil, nil, err
	}
	s := r.sessions[l.ID()]
	if s == nil || r.view.Leader.Session != s.id {
		l.h.w.mu.Unlock()
		return nil, nil, fmt.Errorf("renew %s: %w", l.ID(), ErrSessionGone)
	}
	return r, s, nil
}

func (l *fakeLease) Renew(ctx context.Context) error {
	_, s, err := l.held(ctx)
	if err != nil {
		return err
	}
	defer l.h.w.mu.Unlock()
	s.ends.Reset(2 * s.ttl)
	return nil
}

func (l *fakeLease) Update(ctx context.Context, value cluster.Leader) error {
	r, _, err := l.held(ctx)
	if err != nil {
		return err
	}
	defer l.h.w.mu.Unlock()
	value.Held, value.Session = true, l.ID()
	r.view.Leader, r.view.LeaderIndex = value, r.touch()
	return nil
}

func (l *fakeLease) Release(ctx context.Context) error {
	r, _, err := l.held(ctx)
	if errors.Is(err, ErrSessionGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.h.w.mu.Unlock()
	if l.h.pg.running && l.h.pg.primary {
		l.h.w.fault("%s gives the lock back before its primary has stopped", l.h.name)
	}
	r.view.Leader.Ready = false
	r.drop(l.ID())
	return nil
}

// Bind leaves the former session, which holds nothing any more, to its end. The lease
// knows of it even where the answer is lost: finding out is registry's, and tested there.
func (l *fakeLease) Bind(ctx context.Context) error {
	r, s, err := l.held(ctx)
	if err != nil {
		return err
	}
	defer l.h.w.mu.Unlock()
	if !l.h.fit() {
		return errCheckFails
	}
	next := r.session(s.node, s.ttl)
	next.bound = true
	r.view.Leader.Session, r.view.LeaderIndex = next.id, r.touch()
	l.id.Store(next.id)
	return nil
}
