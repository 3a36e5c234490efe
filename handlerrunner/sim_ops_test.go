package handlerrunner

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// This file holds what operators do.

// handOver is an operator who asks the active node to make another one active.
func (s *simulation) handOver(d *dice) {
	from := s.hosts[s.reg.view.Leader.Node]
	target := s.names[d.below(len(s.names))]
	if from == nil || from.handler == nil {
		return
	}
	handler := from.handler
	s.running.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
		defer cancel()
		err := handler.HandOver(ctx, target, "")
		s.tell(from.name, "hand-over to %s: %v", target, err)
	})
}

// setOption changes an option of a node until the fault is over.
func (s *simulation) setOption(h *host, d *dice) func() {
	n, member := s.reg.view.Nodes[h.name]
	if !member {
		return nil
	}
	o := cluster.Options{"no_failover": "true"}
	if d.chance(0.5) {
		o = cluster.Options{"priority": strconv.Itoa(d.below(200))}
	}
	set := func(o cluster.Options) {
		if n, member = s.reg.view.Nodes[h.name]; member {
			n.Options = o
			s.reg.view.Nodes[h.name] = n
		}
		s.reg.touch()
	}
	set(o)
	return func() { set(nil) }
}

// remove is an operator who takes a standby out of the cluster, once.
func (s *simulation) remove(h *host) {
	v := s.reg.view
	if len(v.Nodes) < 3 || len(v.Removed) > 0 || slices.Contains([]string{v.NextMaster.Node, v.Leader.Node, v.Sync.Leader}, h.name) {
		return
	}
	delete(s.reg.view.Nodes, h.name)
	s.reg.view.Removed[h.name] = cluster.Tombstone{Node: h.name}
	s.reg.touch()
}

// addOne is an operator who joins a new node to an active one, once.
func (s *simulation) addOne() {
	l := s.reg.view.Leader
	if source := s.hosts[l.Node]; len(s.names) > s.nodes || !l.Held || !l.Ready || !source.pg.primary || source.dead {
		return
	}
	name := string(rune('a' + len(s.names)))
	h := s.newHost(name)
	h.pg.take(s.hosts[l.Node].pg, l.Epoch.Tenure())
	s.bootLocked(h)
	s.reg.touch()
}

// pause is an operator who pauses the cluster, and resumes it later; in some seeds
// never.
func (s *simulation) pause() func() {
	if s.reg.down || s.reg.view.Info.Paused != nil {
		return nil
	}
	s.setPause(&cluster.Pause{By: "operator"})
	return func() {
		if !s.paused {
			s.setPause(nil)
		}
	}
}

func (s *simulation) setPause(p *cluster.Pause) {
	info := *s.reg.view.Info
	info.Paused = p
	s.reg.view.Info = &info
	s.reg.touch()
}

// shutDown is a host that goes down in order, and then comes up again; or that
// does not go down after all, where that took too long.
func (s *simulation) shutDown(h *host) func() {
	handler, p, stays := h.handler, s.procs[h.name], false
	if handler == nil {
		return nil
	}
	s.running.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
		defer cancel()
		handler.Retire(ctx, true)
		s.mu.Lock()
		defer s.mu.Unlock()
		if !stays && !p.gone {
			s.tell(h.name, "goes down")
			s.cutPower(h)
		}
	})
	return func() {
		if stays = true; p.gone {
			s.powerOn(h)
			return
		}
		s.running.Go(func() { handler.Retire(s.ctx, false) })
	}
}
