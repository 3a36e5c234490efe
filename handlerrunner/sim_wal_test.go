package handlerrunner

import (
	"maps"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// streams is what a server of a simulation sends and receives. Stories need none
// of it: their WAL is everywhere at once.
type streams struct {
	waiting  []commit           // for their quorum, oldest first
	released int                // no commit up to here is waited for
	in       *stream            // what a standby receives by
	out      map[string]*stream // who receives from this server
	stopping bool               // clients are gone, standbys get the rest
	part     bool               // it is a primary for a part that is cut off

	failExports int // so many of the next ones fail
}

// commit is a transaction, the number of records that hold it, and the latest
// epoch in which somebody had acknowledged when it began.
type commit struct {
	id, end int
	after   cluster.Epoch
}

// stream is a replication connection. Both sides notice its end by themselves.
type stream struct {
	from, to        *fakePG
	sent, confirmed int       // records that the standby has on disk: as it said last, as was heard last
	left, gone      bool      // by the standby; by the sender
	heard           time.Time // when it last worked both ways
}

// silence is how long a connection survives a network that does not work.
const silence = 3 * time.Second

// durable is the number of records that are on disk.
func (p *fakePG) durable() int { return len(p.wal) - p.unflushed }

// lineAt is the timeline that the first n records end on.
func (p *fakePG) lineAt(n int) cluster.Timeline {
	for _, f := range p.history {
		if cluster.LSN(n*recordSize) <= f.LSN {
			return f.Timeline
		}
	}
	return p.timeline
}

// cutTo forgets the records after the first n.
func (p *fakePG) cutTo(n int) {
	p.timeline = p.lineAt(n)
	p.wal, p.unflushed = p.wal[:n:n], 0
	p.history = before(p.history, p.timeline)
}

func before(h cluster.History, tl cluster.Timeline) cluster.History {
	i := slices.IndexFunc(h, func(f cluster.Fork) bool { return f.Timeline >= tl })
	if i < 0 {
		i = len(h)
	}
	return slices.Clone(h[:i])
}

// has says that the commit is on disk here.
func (p *fakePG) has(c commit) bool { return c.end <= p.durable() && p.wal[c.end-1] == c.id }

// connected is the server that p receives from, as far as p knows.
func (p *fakePG) connected() *fakePG {
	if !p.running || p.in == nil {
		return nil
	}
	return p.in.from
}

// downstreams are the standbys that p sends to, as far as p knows.
func (p *fakePG) downstreams() (out []Downstream) {
	for _, name := range slices.Sorted(maps.Keys(p.out)) {
		out = append(out, Downstream{name, cluster.LSN(p.out[name].confirmed * recordSize)})
	}
	return out
}

// hangUp ends what p receives by.
func (p *fakePG) hangUp() {
	if p.in != nil {
		p.in.left, p.in = true, nil
	}
}

// closeStreams ends all connections of a server that stops.
func (p *fakePG) closeStreams() {
	p.hangUp()
	for _, st := range p.out {
		st.gone = true
	}
	p.out, p.waiting, p.stopping, p.part, p.released = nil, nil, false, false, 0
}

// pump lets WAL pass, in steps of about 10 ms, as the dice say.
func (s *simulation) pump() {
	for sleep(s.ctx, 8*time.Millisecond+s.dice.upTo(4*time.Millisecond)) == nil {
		s.mu.Lock()
		for _, name := range s.names {
			h := s.hosts[name]
			if h.dead || h.frozen() || !h.pg.running {
				continue
			}
			if !s.slow[name] && s.dice.chance(0.7) || s.dice.chance(0.03) {
				h.pg.unflushed = 0
			}
			if h.pg.primary {
				s.serve(h.pg)
			} else {
				s.receive(h.pg)
			}
			s.send(h.pg)
			if h.pg.stopping && h.pg.sent() { // whoever asked for it may be gone
				h.pg.stop(true)
			}
		}
		if s.dice.chance(0.5) && !s.reg.down {
			s.reg.checks()
		}
		s.govern()
		s.watchers()
		s.pairs()
		s.fenced()
		s.check()
		s.mu.Unlock()
	}
}

// serve lets clients commit and tells them of what is confirmed.
func (s *simulation) serve(p *fakePG) {
	if p.stopping {
		return
	}
	if p.gate && !p.h.idle && len(p.waiting) < 3 && s.dice.chance(0.4) {
		s.commits++
		s.wrote[s.commits] = written{time.Now(), p.h.name}
		s.madeAt[s.commits] = p.h.at(time.Now())
		p.wal = append(p.wal, s.commits)
		p.unflushed++
		p.waiting = append(p.waiting, commit{s.commits, len(p.wal), s.acking})
	}
	p.hear("", 0)
	for len(p.waiting) > 0 && p.confirmed(p.waiting[0]) {
		s.acknowledged(p, p.waiting[0])
		p.waiting = p.waiting[1:]
	}
}

func (p *fakePG) confirmed(c commit) bool {
	return c.end <= p.durable() && (p.quorum.K == 0 || c.end <= p.released)
}

// hear counts what the standbys of the quorum say that they hold, and what one more
// does, whose connection is about to end. As in PostgreSQL (syncrep.c) what has once
// been confirmed is never taken back: it is not waited for any more, until the server
// is started again.
func (p *fakePG) hear(more string, upTo int) {
	said := map[string]int{more: upTo}
	for name, st := range p.out {
		said[name] = max(said[name], st.confirmed)
	}
	maps.DeleteFunc(said, func(name string, _ int) bool { return !slices.Contains(p.quorum.Members, name) })
	if k := p.quorum.K; k > 0 && len(said) >= k {
		all := slices.Sorted(maps.Values(said))
		p.released = max(p.released, all[len(all)-k])
	}
}

// receive connects a standby, or takes some of what its upstream has on disk.
func (s *simulation) receive(p *fakePG) {
	if p.in == nil {
		s.connect(p)
		return
	}
	st, up := p.in, p.in.from
	hears := s.linked(up.h.name, p.h.name)
	switch {
	case st.gone && hears || time.Since(st.heard) > silence:
		p.hangUp()
		return
	case st.gone || !hears || up.h.dead || up.h.frozen():
		return
	}
	if last := len(p.wal) - 1; last >= len(up.wal) || p.wal[last] != up.wal[last] {
		s.violate("%s, at %s, streams from %s, at %s, and has other WAL", p.h.name, p.position(), up.h.name, up.position())
		return
	}
	if rest := up.durable() - len(p.wal); rest > 0 && !s.lags[p.h.name] && s.dice.chance(0.8) {
		n := len(p.wal) + 1 + s.dice.below(rest)
		p.unflushed += n - len(p.wal)
		p.wal = append(p.wal, up.wal[len(p.wal):n]...)
		if tl := up.lineAt(n); tl != p.timeline {
			p.timeline, p.history = tl, before(up.history, tl)
		}
	}
	if s.linked(p.h.name, up.h.name) {
		st.heard = time.Now()
		if s.dice.chance(0.8) {
			st.confirmed, st.sent = st.sent, p.durable()
		}
	}
}

// connect makes a connection where PostgreSQL would: there is a slot, and the
// WAL of the standby is on the way to that of its upstream.
func (s *simulation) connect(p *fakePG) {
	u := s.hosts[p.upstream]
	if u == nil || u == p.h || u.dead || u.frozen() || !u.pg.running || u.pg.stopping || !s.dice.chance(0.3) ||
		!s.linked(p.h.name, u.name) || !s.linked(u.name, p.h.name) {
		return
	}
	here := cluster.Position{Timeline: p.timeline, LSN: cluster.LSN(len(p.wal) * recordSize)}
	if !u.pg.sendsTo(p) {
		return
	}
	if !u.pg.history.Contains(u.pg.timeline, here) || len(p.wal) > u.pg.durable() {
		// It is let in all the same, says where it is, and ends where the lines part.
		if begins := p.timeline == u.pg.timeline || slices.ContainsFunc(u.pg.history, func(f cluster.Fork) bool { return f.Timeline == p.timeline }); begins && u.pg.primary {
			u.pg.hear(p.h.name, p.durable())
			s.count("standbys with forked WAL let in")
		}
		return
	}
	p.in = &stream{from: u.pg, to: p, heard: time.Now()}
	if u.pg.out == nil {
		u.pg.out = map[string]*stream{}
	}
	u.pg.out[p.h.name] = p.in
}

// send notices who has left. The last word of a standby may arrive after it.
func (s *simulation) send(p *fakePG) {
	for _, name := range slices.Sorted(maps.Keys(p.out)) {
		st := p.out[name]
		hears := s.linked(name, p.h.name)
		if st.left && hears && s.dice.chance(0.5) {
			st.confirmed = max(st.confirmed, st.sent)
			delete(p.out, name)
		} else if time.Since(st.heard) > silence {
			delete(p.out, name)
		}
	}
}
