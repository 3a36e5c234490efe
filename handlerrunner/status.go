package handlerrunner

import (
	"cmp"
	"context"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// Report tells of this node from memory, except for the timeline's history.
func (h *Handler) Report(ctx context.Context) cluster.Report {
	view, d, db := h.snapshot()
	_, epoch := h.tenure.valid(time.Now())
	r := cluster.Report{
		Node: h.Node, State: d.State, Promise: d.Promise, Epoch: view.NextMaster.Epoch, Version: h.Version,
		Position: db.Position, Upstream: db.Upstream, Quorum: db.InEffect, SystemID: db.SystemID, Streaming: db.Streaming, Side: d.Side,
		Files: h.Files().Complete,
	}
	if view.Info != nil {
		r.Cluster = view.Info.ID
	}
	if r.Mode = h.Mode(); r.Mode == cluster.MajorityMode {
		r.Open, r.Epoch = true, epoch
	}
	r.Paused = d.Paused
	if db.Running == cluster.Yes && (r.Open || db.Streaming) {
		r.LagBytes = &db.Lag
	}
	if db.Position.Timeline > 0 {
		if history, err := h.Replication.History(ctx, db.Position.Timeline); err == nil {
			r.History = history
		}
	}
	r.Follows, r.Problem = h.followedEpoch(), h.hindrance()
	for _, u := range h.AlwaysUnits {
		running := h.running(u)
		r.Services = append(r.Services, cluster.Unit{Name: u, Running: running})
		r.Problem = cmp.Or(r.Problem, h.ails(u, running))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	r.Reason, r.Since, r.Departed = h.reason, h.since, h.departed
	for _, u := range h.LeaderUnits {
		r.Services = append(r.Services, cluster.Unit{Name: u, Leader: true, Running: h.units[u]})
	}
	return r
}

// running says whether a unit ran when it was last looked at.
func (h *Handler) running(unit string) cluster.Tri {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.units[unit]
}

// Mode says whether this node is open to clients at this moment, without any
// I/O: for load balancers. While the cluster is paused that needs no lease.
func (h *Handler) Mode() cluster.Mode {
	valid, epoch := h.tenure.valid(time.Now())
	if h.serves() {
		return cluster.AtRiskMode
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if valid && h.durable.State == cluster.Active && epoch == h.view.NextMaster.Epoch || h.spared() {
		return cluster.MajorityMode
	}
	return cluster.Closed
}

// Role is what this node is to clients at this moment, without any I/O.
func (h *Handler) Role() cluster.Role {
	_, d, db := h.snapshot()
	return cluster.Report{State: d.State, Mode: h.Mode(), Streaming: db.Streaming}.Role()
}

// Active returns the active node as far as this one knows, without asking others. One
// that is cut off knows only of itself.
func (h *Handler) Active() (cluster.Node, bool) {
	view := h.View()
	if h.Mode() != cluster.Closed {
		n, ok := view.Nodes[h.Node]
		return n, ok
	}
	if v := h.Verdict().Verdict; view.Leader.Node == h.Node || v == cluster.Minority || v == cluster.Isolated {
		return cluster.Node{}, false
	}
	return view.Active()
}

// View is the cluster's state as this node last saw it.
func (h *Handler) View() cluster.View {
	view, _, _ := h.snapshot()
	return view
}
