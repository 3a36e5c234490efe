package handlerrunner

import (
	"reflect"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// openWithin bounds how long a node may stay open to clients without its lease
// while nothing keeps its handler from closing it: a look at PostgreSQL, a fast
// shutdown that does not end, a kill.
const openWithin = 8 * time.Second

// async says that commits are not confirmed, so that some may be lost.
func (s *simulation) async() bool {
	return s.reg.view.SyncMode() == cluster.Async
}

// acknowledged is the moment in which a client is told that its commit is safe.
// From then on every node that is named must have it.
func (s *simulation) acknowledged(p *fakePG, c commit) {
	name := p.h.name
	epoch := s.epochs[name]
	if p.part || s.async() {
		s.risked(p, c)
		return
	}
	s.ackedBy[name] = time.Now()
	s.acks++
	s.promised = append(s.promised, c)
	if c.after > epoch { // confirmations that were on their way may still be heard, of what is on the line
		s.violate("two acknowledge: %s commit %d in epoch %d, after another one did in epoch %d", name, c.id, epoch, s.acking)
	}
	s.acking = max(s.acking, epoch)
	if have := s.holders(p, c); have < p.quorum.K {
		s.violate("unconfirmed: %s acknowledges commit %d, which %d others have, and waits for %s", name, c.id, have, p.quorum)
	}
	if named := s.hosts[s.reg.view.NextMaster.Node]; named != p.h && !named.pg.has(c) {
		s.tell(name, "acknowledges commit %d, which %s lacks", c.id, named.name)
		s.heals() // its standbys may have confirmed it before the election that gave it up
	}
	if s.recording && s.acks%50 == 1 {
		s.tell(name, "acknowledges commit %d in epoch %d", c.id, epoch)
	}
}

// holders counts the other nodes that have a commit on disk.
func (s *simulation) holders(p *fakePG, c commit) (n int) {
	for _, h := range s.hosts {
		if h.pg != p && h.pg.has(c) {
			n++
		}
	}
	return n
}

// lacks returns an acknowledged commit that is not on disk there.
func (s *simulation) lacks(p *fakePG) (commit, bool) {
	i := slices.IndexFunc(s.promised, func(c commit) bool { return !p.has(c) })
	if i < 0 || s.async() {
		return commit{}, false
	}
	return s.promised[i], true
}

// named is called when an election has named somebody, with the leader key that
// it has seen.
func (s *simulation) named(before cluster.Leader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, last := s.reg.view.NextMaster, s.naming.Assignment
	if a.Epoch <= last.Epoch && !reflect.DeepEqual(a, last) {
		s.violate("the epoch goes back: %s is named for %d after %s for %d", a.Node, a.Epoch, last.Node, last.Epoch)
	}
	winner := s.hosts[a.Node].pg
	s.naming = naming{a, before, slices.Clone(winner.wal)}
	if _, bad := s.lacks(winner); bad {
		s.heals()
	}
}

// locked is called when a host has taken the lock.
func (s *simulation) locked(l cluster.Leader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epochs[l.Node] = l.Epoch
	s.tell(l.Node, "holds the lock for epoch %d", l.Epoch)
}

// updated is called when the holder of the lock has said something new.
func (s *simulation) updated(l cluster.Leader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell(l.Node, "leader key: ready %v, timeline %d", l.Ready, l.Timeline)
	if !l.Ready || l.Epoch == s.ready.Epoch {
		return
	}
	s.count("changes of the active node")
	if l.Epoch < s.ready.Epoch || l.Timeline <= s.ready.Timeline && !s.async() {
		s.violate("the timeline goes back: %s serves timeline %d in epoch %d after %d in %d", l.Node, l.Timeline, l.Epoch, s.ready.Timeline, s.ready.Epoch)
	}
	s.ready = l
}

// opened is called when a host may have become open to writes.
func (s *simulation) opened(h *host) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !h.pg.running || !h.pg.primary || !h.pg.gate {
		return
	}
	s.tell(h.name, "is open to writes at %s", h.pg.position())
	if c, bad := s.lacks(h.pg); bad && !h.pg.part && s.epochs[h.name] == s.reg.view.NextMaster.Epoch {
		s.violate("a commit is lost: %s opens in epoch %d and lacks acknowledged commit %d", h.name, s.epochs[h.name], c.id)
	}
}

// copying is called when a directory is no whole copy any more, or has lost WAL.
func (s *simulation) copying(h *host) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.whole()
}

// whole asserts that one whole directory holds all that was acknowledged, and
// that nothing has vanished of what was written at risk.
func (s *simulation) whole() {
	s.spare()
	for _, name := range s.names {
		p := s.hosts[name].pg
		if _, bad := s.lacks(p); p.complete && !bad {
			return
		}
	}
	s.violate("no whole data directory holds every acknowledged commit")
}

func (s *simulation) copied(h *host, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell(h.name, "copy ends: %v", err)
	s.whole()
}

// answered notes who has promised what to whom.
func (s *simulation) answered(by, node string, epoch cluster.Epoch, seen uint64, a cluster.Answer, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.tell(node, "gives %s no answer for epoch %d: %v", by, epoch, err)
		return
	}
	s.tell(node, "promises %s epoch %d at %s", by, a.Epoch, a.Position)
	if w := s.words[node]; a.Epoch > w.epoch || a.Epoch == w.epoch && seen > w.seen {
		s.words[node] = word{a.Epoch, seen}
	}
}

// word is a promise that was given, and what its election had seen of the leader
// key.
type word struct {
	epoch cluster.Epoch
	seen  uint64
}

// keepsPromise asserts that a handler that starts knows what it has promised,
// unless the election can name nobody any more.
func (s *simulation) keepsPromise(h *host, handler *Handler) {
	_, d, _ := handler.snapshot()
	if w := s.words[h.name]; d.Promise < w.epoch && s.reg.view.LeaderIndex <= w.seen {
		s.violate("a promise is forgotten: %s promised epoch %d and starts with %d", h.name, w.epoch, d.Promise)
	}
}

// fenced asserts that a node without a lease does not stay open, unless it serves
// a part or the cluster is paused.
func (s *simulation) fenced() {
	for _, name := range s.names {
		h := s.hosts[name]
		loose := s.open(h) && s.able(h)
		if loose {
			valid, _ := h.handler.tenure.valid(time.Now())
			loose = !valid && h.handler.Mode() == cluster.Closed || h.pg.part && s.watches[name].judged.Verdict == cluster.Majority
		}
		switch {
		case !loose:
			s.loose[name] = time.Time{}
		case s.loose[name].IsZero():
			s.loose[name] = time.Now()
		case time.Since(s.loose[name]) > openWithin:
			s.violate("no fence: %s has been open without a lease for %s", name, openWithin)
		}
	}
}

// check asserts what must hold at every moment.
func (s *simulation) check() {
	lock, published := s.reg.view.Leader, s.reg.view.Sync
	for _, name := range s.names {
		p := s.hosts[name].pg
		if !p.running || !p.primary || !p.gate || p.part { // a part publishes nothing
			continue
		}
		if lock.Held && lock.Node == name && s.epochs[name] == lock.Epoch && (published.Leader != name || published.Epoch != lock.Epoch) {
			s.violate("unpublished: %s is open in epoch %d and the sync set is still that of epoch %d", name, lock.Epoch, published.Epoch)
		}
		if published.Leader == name && !published.Covered(p.quorum) {
			s.violate("not covered: %s waits for %s, which the published set %v does not cover", name, p.quorum, published)
		}
	}
}

// converged says what is missing until all members stream from one active node
// that acknowledges commits; nothing, if they do.
func (s *simulation) converged() string {
	v := s.reg.view
	l := v.Leader
	active := s.hosts[l.Node]
	want := cluster.Desired(v.SyncMode(), len(v.Managers()), v.Managers())
	switch {
	case !l.Held || !l.Ready || l.Epoch != v.NextMaster.Epoch:
		return "nobody holds the lock and is ready"
	case active.handler == nil || active.handler.Mode() != cluster.MajorityMode || !active.pg.gate || !active.pg.primary:
		return l.Node + " is not active"
	case time.Since(s.ackedBy[l.Node]) > 500*time.Millisecond:
		return l.Node + " acknowledges nothing"
	case v.Sync.K != want.K || v.Sync.Epoch != l.Epoch:
		return "the sync set is not whole"
	}
	for _, name := range v.Managers() {
		h := s.hosts[name]
		if name == l.Node {
			continue
		}
		if h.handler == nil || h.pg.connected() != active.pg {
			return name + " does not stream from " + l.Node
		}
		if _, d, _ := h.handler.snapshot(); d.State != cluster.Standby {
			return name + " is " + string(d.State)
		}
	}
	for _, name := range v.Managers() {
		if _, d, _ := s.hosts[name].handler.snapshot(); d.Side != nil {
			return name + " still thinks of a part that was served"
		}
	}
	return ""
}
