package handlerrunner

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

var (
	_ Parts      = (*fakePeers)(nil)
	_ Divergence = (*fakeDivergence)(nil)
)

// report is what the watcher of a host says: which members it reaches, and what
// that means by the story.
func (h *host) report() cluster.VerdictReport {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	r := cluster.VerdictReport{Verdict: h.verdict, Reason: "story"}
	for _, name := range h.w.sorted() {
		o := h.w.hosts[name]
		if _, member := h.w.reg.view.Nodes[name]; member && (o == h || h.reaches(o) && !o.dead && !o.frozen()) {
			r.Reached = append(r.Reached, name)
		}
	}
	return r
}

func (p *fakePeers) Rally(ctx context.Context, node cluster.Node) (cluster.Answer, error) {
	handler, err := p.reach(ctx, node.Name)
	if err != nil {
		return cluster.Answer{}, err
	}
	return handler.Rally(ctx)
}

func (p *fakePeers) Claim(ctx context.Context, node cluster.Node, a cluster.Answer) error {
	handler, err := p.reach(ctx, node.Name)
	if err != nil {
		return err
	}
	return handler.Claim(ctx, a)
}

// fakeDivergence knows when each commit was made, and keeps what is exported in
// the world.
type fakeDivergence struct{ h *host }

func (p *fakePeers) LastWrite(ctx context.Context, node cluster.Node, after cluster.LSN) (cluster.LastWrite, error) {
	handler, err := p.reach(ctx, node.Name)
	if err != nil {
		return cluster.LastWrite{}, err
	}
	return handler.LastWrite(ctx, after)
}

func (d *fakeDivergence) LastCommit(_ context.Context, after cluster.LSN) (cluster.LastWrite, error) {
	d.h.w.mu.Lock()
	defer d.h.w.mu.Unlock()
	last := cluster.LastWrite{Clock: time.Now().Add(d.h.fast)}
	for i, id := range slices.Backward(d.h.pg.wal) {
		if i < int(after/recordSize) {
			break
		}
		if at, ok := d.h.w.madeAt[id]; ok {
			last.At = at
			break
		}
	}
	return last, nil
}

func (d *fakeDivergence) SkipTimelines(_ context.Context, n int) error {
	d.h.w.mu.Lock()
	defer d.h.w.mu.Unlock()
	if d.h.pg.source() != nil {
		return errors.New("the standby still receives WAL")
	}
	d.h.pg.skip = cluster.Timeline(n)
	return nil
}

func (d *fakeDivergence) Export(ctx context.Context, _ cluster.Epoch, fork cluster.LSN, _ []cluster.Timeline) error {
	if err := d.h.pause(ctx, 100*time.Millisecond); err != nil {
		return err
	}
	w, p := d.h.w, d.h.pg
	w.mu.Lock()
	defer w.mu.Unlock()
	var commits []int
	for _, id := range p.wal[fork/recordSize:] {
		if id > 0 {
			commits = append(commits, id)
		}
	}
	if len(commits) > 0 {
		w.exported = append(w.exported, commits...)
		w.note(d.h.name, "exports what only it has")
	}
	return nil
}

func (d *fakeDivergence) Keep(context.Context, cluster.LSN) error { return nil }
