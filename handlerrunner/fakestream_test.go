package handlerrunner

import "slices"

// source is the server that p streams from now, or nil. As in PostgreSQL, what
// counts is the timeline and the LSN, not what the WAL says.
func (p *fakePG) source() *fakePG {
	if p.h.w.sim != nil {
		return p.connected()
	}
	u := p.h.w.hosts[p.upstream]
	if u == nil || !p.running || p.primary || p.unplugged || p.stranded || p.h.frozen() {
		return nil
	}
	s := u.pg
	if u.dead || !p.h.reaches(u) || u.frozen() || !s.running || !s.sendsTo(p) ||
		!s.history.Contains(s.timeline, p.position()) || p.lsn() > s.lsn() {
		return nil
	}
	return s
}

// sendsTo says that s has the slot that p reads through.
func (s *fakePG) sendsTo(p *fakePG) bool {
	return s.tenure == p.through && slices.Contains(s.slots, p.h.name)
}

// receive takes what the upstream has.
func (p *fakePG) receive() (moved bool) {
	s := p.source()
	if s != nil {
		p.mending = false
	}
	if s == nil || p.stalled || p.lsn() == s.lsn() && p.timeline == s.timeline {
		return false
	}
	p.wal = append(p.wal, s.wal[len(p.wal):]...)
	p.timeline, p.history = s.timeline, slices.Clone(s.history)
	return true
}

func (p *fakePG) standbys() (out []Downstream) {
	if p.h.w.sim != nil {
		return p.downstreams()
	}
	for _, name := range p.h.w.sorted() {
		if s := p.h.w.hosts[name].pg; s.source() == p {
			out = append(out, Downstream{name, s.lsn()})
		}
	}
	return out
}

// forked says that p has WAL that u has not.
func (p *fakePG) forked(u *fakePG) bool {
	last := len(p.wal) - 1
	return last >= len(u.wal) || last >= 0 && p.wal[last] != u.wal[last]
}
