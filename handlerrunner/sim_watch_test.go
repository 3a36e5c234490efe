package handlerrunner

import (
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

const (
	consul  = "consul"  // the registry as an end of links
	outside = "outside" // the default gateway
)

// The times of consul-watcher.
const (
	probeEvery = 500 * time.Millisecond
	probeLimit = time.Second
	probeFresh = 3*probeEvery + probeLimit
	staleAfter = 10 * time.Second // a verdict that is older is not believed
)

type link struct{ from, to string }

// linked says that packets pass from one end to another. Where the registry is
// on the hosts, they take the way over the one that leads it.
func (s *simulation) linked(from, to string) bool {
	if s.cuts[link{from, to}] > 0 {
		return false
	}
	switch leader := s.raft.leader; {
	case !s.raft.hosted:
		return true
	case to == consul:
		return leader != "" && s.cuts[link{from, leader}] == 0
	case from == consul:
		return leader != "" && s.cuts[link{leader, to}] == 0
	}
	return true
}

func (s *simulation) between(a, b string) bool { return s.linked(a, b) && s.linked(b, a) }

func (s *simulation) works(h *host) bool { return !h.dead && !h.frozen() }

func (s *simulation) speaks(h *host) bool {
	return s.works(h) && s.between(h.name, consul) && !s.reg.down
}

// raft is the registry as its servers make it: on the hosts, where a majority of
// them must reach one that leads, or somewhere else.
type raft struct {
	hosted bool
	leader string
	stops  int       // faults that keep it down
	elects time.Time // when it has a new leader, at the earliest
}

// govern lets the registry lose its leader and find another one.
func (s *simulation) govern() {
	r := &s.raft
	if r.hosted && !s.rules(r.leader) {
		if r.leader != "" || r.elects.IsZero() {
			r.leader, r.elects = "", time.Now().Add(s.dice.between(150*ms, 1200*ms))
		}
		if first := s.dice.below(len(s.names)); time.Now().After(r.elects) {
			for i := range s.names {
				if name := s.names[(first+i)%len(s.names)]; s.rules(name) {
					r.leader, r.elects = name, time.Time{}
					break
				}
			}
		}
	}
	down := r.stops > 0 || r.hosted && r.leader == ""
	if s.reg.down && !down { // sessions get their whole TTL
		for _, session := range s.reg.sessions {
			session.ends.Reset(2*session.ttl + time.Duration(len(session.id)))
		}
		s.reg.touch()
	}
	s.reg.down = down
}

// rules says that the registry's server on a host can lead it.
func (s *simulation) rules(name string) bool {
	h := s.hosts[name]
	if h == nil || !s.works(h) || s.reg.view.Nodes[name].Name == "" {
		return false
	}
	near := 1
	for other := range s.reg.view.Nodes {
		if other != name && s.works(s.hosts[other]) && s.between(name, other) {
			near++
		}
	}
	return near > len(s.reg.view.Nodes)/2
}

// watch is the consul-watcher of a host: it probes the others over the links
// that there are, and judges by cluster.Connectivity as the real one does.
type watch struct {
	judged   cluster.Judgement
	report   cluster.VerdictReport
	contacts map[string]cluster.Contact
	asked    map[string]time.Time // probes that have no answer yet
	managers []string
	next     time.Time
	heard    time.Time     // when the registry's leader last reached this host
	recalls  time.Duration // how long the host's agent speaks of a leader that has gone
	killed   int           // faults that keep it from running
}

// watchers lets every watcher probe that is due.
func (s *simulation) watchers() {
	now := time.Now()
	for _, name := range s.names {
		h, w := s.hosts[name], s.watches[name]
		if w == nil {
			w = &watch{contacts: map[string]cluster.Contact{}, asked: map[string]time.Time{}, recalls: s.dice.upTo(3 * time.Second)}
			s.watches[name] = w
		}
		if h.dead { // the run directory is gone with the power
			w.judged, w.report = cluster.Judgement{}, cluster.VerdictReport{}
			clear(w.contacts)
			clear(w.asked)
		}
		if !s.works(h) || w.killed > 0 || now.Before(w.next) {
			continue
		}
		w.next = now.Add(probeEvery - 20*ms + s.dice.upTo(40*ms))
		w.probe(s, h, now)
		w.judge(s, h, now)
	}
}

func (w *watch) probe(s *simulation, h *host, now time.Time) {
	if s.speaks(h) {
		w.managers = s.reg.view.Managers()
	}
	for _, name := range w.managers {
		other := s.hosts[name]
		result := cluster.ProbeSilent
		switch {
		case other == h:
			continue
		case !s.works(other) || !s.between(h.name, name) || s.naps[name] != nil || s.loss > 0 && s.dice.chance(s.loss):
		case other.handler == nil:
			result = cluster.ProbeRefused
		default:
			result = cluster.ProbeAnswered
		}
		if result == cluster.ProbeSilent {
			since, waits := w.asked[name]
			if !waits {
				w.asked[name] = now
			}
			if !waits || now.Sub(since) < probeLimit-20*ms {
				continue
			}
		}
		delete(w.asked, name)
		w.contacts[name] = w.contacts[name].Next(now, result)
	}
}

func (w *watch) judge(s *simulation, h *host, now time.Time) {
	if s.speaks(h) {
		w.heard = now
	}
	c := cluster.Connectivity{
		Self: h.name, Managers: w.managers, RaftLeader: cluster.TriOf(now.Sub(w.heard) <= w.recalls), Contacts: w.contacts, Fresh: probeFresh,
		Outside:     []cluster.Outside{{Name: "gateway", Reached: cluster.TriOf(s.between(h.name, outside))}},
		LeaderHeard: w.heard,
	}
	before := w.judged.Verdict
	w.judged = c.Judge(now, s.reg.view.Options(h.name).Duration("minority_after"), w.judged)
	w.report = w.judged.Report(now)
	if w.judged.Verdict != before {
		s.tell(h.name, "verdict: %s, %s", w.judged.Verdict, w.judged.Reason)
	}
}

// killWatcher ends the watcher of a host. The next one takes up its verdict.
func (s *simulation) killWatcher(h *host) func() {
	w := s.watches[h.name]
	if w == nil {
		return nil
	}
	w.killed++
	return func() {
		if w.killed--; w.killed == 0 {
			w.judged = cluster.Judgement{}
			if time.Since(w.report.At) < staleAfter {
				w.judged = cluster.Resume(w.report, time.Now(), s.reg.view.Options(h.name).Duration("minority_after"))
			}
			clear(w.contacts)
			clear(w.asked)
			w.next = time.Now().Add(2 * probeLimit) // its first round
		}
	}
}

// verdict is what the handler reads of the watcher.
func (p *proc) verdict() cluster.VerdictReport {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	w := p.s.watches[p.name]
	if w == nil || p.s.blind[p.name] || time.Since(w.report.At) > staleAfter {
		return cluster.VerdictReport{}
	}
	return w.report
}
