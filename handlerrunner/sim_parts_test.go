package handlerrunner

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// This file holds what must be true of parts of the cluster that are cut off and
// served, and of what becomes of their commits.

var errExport = fmt.Errorf("the disk for exports is full: %w", ErrSetAside)

// partsSettle bounds how long two nodes that reach each other may both take
// writes, beyond minority_after.
const partsSettle = 10 * time.Second

// keptCopies is how many earlier data directories a clone leaves.
const keptCopies = 2

// written is what the simulator knows of a commit, in true time.
type written struct {
	at time.Time
	by string
}

// made tells one timeline from another as PostgreSQL does.
type made struct {
	timeline cluster.Timeline
	fork     cluster.Fork
}

type maker struct {
	node string
	part bool
}

// makes is called when a host has promoted.
func (s *simulation) makes(h *host, part bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := h.pg
	key := made{p.timeline, p.history[len(p.history)-1]}
	m := maker{h.name, part}
	if other, twice := s.timelines[key]; twice && (part || other.part) {
		s.violate("a timeline is made twice: %s and %s both made timeline %d at %s", other.node, h.name, key.timeline, key.fork.LSN)
	}
	s.timelines[key] = m
	if !part {
		return
	}
	s.served[p.wal[len(p.wal)-1]] = h.name
	s.count("parts served")
	s.tell(h.name, "serves a part on timeline %d, from %s on", key.timeline, key.fork.LSN)
	for _, name := range s.names {
		o := s.hosts[name]
		if o != h && o.pg.part && o.pg.primary && o.pg.running {
			s.count("parts served at the same time")
		}
		if o != h && s.open(o) && s.able(o) && s.able(h) && s.loss == 0 && s.near(o, h) > partsSettle {
			s.violate("two in a part: %s begins to serve beside %s, which it has reached for %s", h.name, name, partsSettle)
		}
	}
}

func (s *simulation) open(h *host) bool { return h.pg.running && h.pg.primary && h.pg.gate }

// able says that nothing keeps the daemons of a host from doing their work.
func (s *simulation) able(h *host) bool {
	w := s.watches[h.name]
	return h.handler != nil && s.works(h) && s.naps[h.name] == nil && !h.units.stuck[pgUnit] && !s.slow[h.name] &&
		!s.blind[h.name] && !s.refused[h.name] && w != nil && w.killed == 0
}

// pair are two hosts, in the order of their names.
type pair [2]string

func pairOf(a, b *host) pair { return pair{min(a.name, b.name), max(a.name, b.name)} }

// near is for how long two hosts have reached each other without a break.
func (s *simulation) near(a, b *host) time.Duration {
	if since := s.met[pairOf(a, b)]; !since.IsZero() {
		return time.Since(since)
	}
	return 0
}

// pairs notes who reaches whom, and asserts that of two that do, one takes
// writes.
func (s *simulation) pairs() {
	for i, name := range s.names {
		for _, other := range s.names[i+1:] {
			a, b := s.hosts[name], s.hosts[other]
			key := pairOf(a, b)
			switch meet := s.loss == 0 && s.able(a) && s.able(b) && s.between(name, other); {
			case !meet:
				delete(s.met, key)
			case s.met[key].IsZero():
				s.met[key] = time.Now()
			}
			switch rivals := s.open(a) && s.open(b) && s.near(a, b) > 0; {
			case !rivals:
				delete(s.rivals, key)
			case s.rivals[key].IsZero():
				s.rivals[key] = time.Now()
			case time.Since(s.rivals[key]) > s.settles():
				s.violate("two take writes: %s and %s, which have reached each other for %s", name, other, s.settles())
			}
			switch both := s.leads(a) && s.leads(b); {
			case !both:
				delete(s.doubles, key)
			case s.doubles[key].IsZero():
				s.doubles[key] = time.Now()
			case time.Since(s.doubles[key]) > openWithin:
				s.violate("two are active: %s and %s, and neither says that it serves a part", name, other)
			}
		}
	}
}

// leads says that a host takes writes as the active node of the whole cluster, and that
// nothing keeps its handler from closing it.
func (s *simulation) leads(h *host) bool {
	if !s.open(h) || h.pg.part || !s.able(h) {
		return false
	}
	_, d, _ := h.handler.snapshot()
	return !d.Paused
}

func (s *simulation) settles() time.Duration {
	return s.reg.view.Options("").Duration("minority_after") + partsSettle
}

// risked is the moment in which a client of a part is told that its commit is
// done: it must be on the winner or in an export in the end.
func (s *simulation) risked(p *fakePG, c commit) {
	s.acks++
	s.ackedBy[p.h.name] = time.Now()
	s.risky = append(s.risky, c)
	s.count("commits at risk")
}

// secured says that a commit is on a whole directory, or in an export.
func (s *simulation) secured(c commit) bool {
	if s.kept(c) {
		return true
	}
	for _, name := range s.names {
		if p := s.hosts[name].pg; p.complete && p.has(c) {
			return true
		}
	}
	return false
}

// kept says that a commit is in an export, or in a directory beside which a
// clone was made.
func (s *simulation) kept(c commit) bool {
	if s.exportedAll[c.id] {
		return true
	}
	for _, name := range s.names {
		if slices.ContainsFunc(s.copies[name], func(wal []int) bool { return c.end <= len(wal) && wal[c.end-1] == c.id }) {
			return true
		}
	}
	return false
}

// spare asserts that nothing at risk has vanished.
func (s *simulation) spare() {
	i := slices.IndexFunc(s.risky, func(c commit) bool { return !s.secured(c) })
	if i >= 0 {
		s.violate("a commit has vanished: %d, written on %s, is on no whole directory and in no export", s.risky[i].id, s.wrote[s.risky[i].id].by)
	}
}

// exports is called when a host has exported what lies after an LSN.
func (s *simulation) exports(h *host, after cluster.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range h.pg.wal[after/recordSize:] {
		if id > 0 && !s.exportedAll[id] {
			s.exportedAll[id] = true
			s.count("commits exported")
		}
	}
}

// lays keeps the directory that a clone replaces.
func (s *simulation) lays(p *fakePG) {
	old := append(s.copies[p.h.name], slices.Clone(p.wal[:p.durable()]))
	s.copies[p.h.name] = old[max(0, len(old)-keptCopies):]
}

// naming is the outcome of an election: the leader key that it had seen, and the
// records that the winner had then.
type naming struct {
	cluster.Assignment
	before cluster.Leader
	wal    []int
}

// ofPart is the number of records up to where a part was served last; zero where
// they are those of no part.
func (s *simulation) ofPart(wal []int) int {
	for i, id := range slices.Backward(wal) {
		if s.served[id] != "" {
			return i + 1
		}
	}
	return 0
}

// heals is called when the node that was named last lacks what was acknowledged,
// before or since. That is right where its part had been written later when it
// was named; then what it lacks is exported.
func (s *simulation) heals() {
	a := s.naming
	winner := s.hosts[a.Node].pg
	begun := s.ofPart(a.wal)
	var rest []commit
	var lost []commit
	for _, c := range s.promised {
		if winner.has(c) {
			rest = append(rest, c)
		} else {
			lost = append(lost, c)
		}
	}
	switch mode := cluster.HealMode(s.reg.view.Options("").Get("heal")); {
	case begun == 0:
		s.violate("a commit is lost: %s is named for epoch %d and lacks acknowledged commit %d", a.Node, a.Epoch, lost[0].id)
		return
	case mode == cluster.HealMajority:
		s.violate("a commit is lost: %s is named for epoch %d and lacks acknowledged commit %d, although heal is majority", a.Node, a.Epoch, lost[0].id)
		return
	}
	from := min(begun, lost[0].end-1) // it may have served more than once since it left the line of what it lacks
	ours, theirs := s.latest(ids(lost)), s.latest(a.wal[from:])
	handed := a.By == a.before.Node && ours.by == a.By && theirs.by == a.Node
	apart := (s.clockOf(ours.by) - s.clockOf(theirs.by)).Abs()
	switch {
	case handed && apart > cluster.ClockSkew:
		s.violate("heal: the clocks of %s and %s are %s apart, and %s gives way", a.By, a.Node, apart, a.By)
	case !theirs.at.After(ours.at) && (handed || apart <= cluster.ClockSkew):
		s.violate("heal: %s is named for epoch %d, was written last %s before %s, and lacks acknowledged commit %d",
			a.Node, a.Epoch, ours.at.Sub(theirs.at), ours.by, lost[0].id)
	}
	s.promised, s.risky = rest, append(s.risky, lost...)
	s.count("heals that gave up acknowledged commits of the majority")
	s.tell(a.Node, "wins with its part, without %d acknowledged commits", len(lost))
}

func (s *simulation) clockOf(host string) time.Duration {
	if h := s.hosts[host]; h != nil {
		return h.fast
	}
	return 0
}

func ids(commits []commit) (ids []int) {
	for _, c := range commits {
		ids = append(ids, c.id)
	}
	return ids
}

// latest is the commit that was written last, in true time.
func (s *simulation) latest(ids []int) (last written) {
	for _, id := range ids {
		if w := s.wrote[id]; w.at.After(last.at) {
			last = w
		}
	}
	return last
}

// settled asserts of a cluster that has recovered that every commit that anybody
// was told of is on the active node or in an export.
func (s *simulation) settled(active *fakePG) {
	removed := func(c commit) bool {
		for name := range s.reg.view.Removed {
			if s.hosts[name].pg.has(c) {
				return true
			}
		}
		return false
	}
	for record := range s.served {
		if slices.Contains(active.wal, record) {
			s.count("heals: the part's database went on")
		} else {
			s.count("heals: the part gave way")
		}
	}
	for _, c := range slices.Concat(s.promised, s.risky) {
		if !active.has(c) && !s.kept(c) && !removed(c) {
			s.violate("a commit is lost: %d, written on %s, is neither on %s nor in an export", c.id, s.wrote[c.id].by, active.h.name)
			return
		}
	}
}

// mends asserts of a rewind that what PostgreSQL takes for common, by the numbers
// of timelines and where they begin, is.
func (s *simulation) mends(p, from *fakePG) {
	at := cluster.Position{Timeline: p.timeline, LSN: cluster.LSN(len(p.wal) * recordSize)}
	n := int(from.history.Fork(from.timeline, p.history, at).LSN / recordSize)
	if n > len(from.wal) || !slices.Equal(p.wal[:n], from.wal[:n]) {
		s.violate("a rewind mixes two histories: %s has other WAL than %s before %s", p.h.name, from.h.name, cluster.LSN(n*recordSize))
	}
}

// The active node a froze with commit 3 pending, which b had confirmed. Then c was
// named, which had served a part, beginning with record 48, and written 10 there. When
// a goes on, it acknowledges 3.
func TestWhatIsAcknowledgedAfterAHeal(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name  string
		heal  cluster.HealMode
		wal   []int // of c, when it was named
		later []int // and since
		at    time.Duration
		lost  bool
	}{
		{"the part was written later", cluster.HealMostRecent, []int{0, 1, 48, 10}, nil, time.Second, false},
		{"the part was written earlier", cluster.HealMostRecent, []int{0, 1, 48, 10}, nil, -time.Second, true},
		{"only the new active node was written later", cluster.HealMostRecent, []int{0, 1, 48}, []int{10}, time.Second, true},
		{"the majority is to win", cluster.HealMajority, []int{0, 1, 48, 10}, nil, time.Second, true},
		{"no part was served", cluster.HealMostRecent, []int{0, 1, 7, 10}, nil, time.Second, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSimulation(1, 3, t.TempDir(), false)
			s.reg.view.Info.Options = cluster.Options{"sync_mode": "available", "heal": string(c.heal)}
			for _, name := range []string{"a", "b", "c"} {
				s.newHost(name)
			}
			s.served[48] = "c"
			s.wrote[1], s.wrote[3], s.wrote[10] = written{t0.Add(-time.Minute), "a"}, written{t0, "a"}, written{t0.Add(c.at), "c"}
			active, standby, winner := s.hosts["a"].pg, s.hosts["b"].pg, s.hosts["c"].pg
			active.wal, standby.wal, winner.wal = []int{0, 1, 3}, []int{0, 1, 3}, c.wal
			active.quorum = cluster.Quorum{K: 1, Members: []string{"b"}}
			s.promised = []commit{{id: 1, end: 2}}
			s.reg.view.NextMaster = cluster.Assignment{Node: "c", Epoch: 2, By: "b"}
			s.named(cluster.Leader{Node: "a", Epoch: 1})
			if s.failed() != "" {
				t.Fatalf("nothing is lost yet, and %s", s.failed())
			}
			winner.wal = append(slices.Clone(c.wal), c.later...)
			s.acknowledged(active, commit{id: 3, end: 3})
			if (s.failed() != "") != c.lost {
				t.Errorf("it says %q", s.failed())
			}
			if !c.lost && !slices.ContainsFunc(s.risky, func(c commit) bool { return c.id == 3 }) {
				t.Errorf("the commit is forgotten: %v", s.risky)
			}
		})
	}
}
