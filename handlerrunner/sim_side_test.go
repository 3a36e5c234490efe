package handlerrunner

import (
	"context"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// simDivergence is fakeDivergence behind the boundaries of a process.
type simDivergence struct {
	*fakeDivergence
	p *proc
}

var (
	_ Divergence = simDivergence{}
	_ Parts      = simPeers{}
)

func (d simDivergence) LastCommit(ctx context.Context, after cluster.LSN) (cluster.LastWrite, error) {
	w, err := call(ctx, simPG{d.h.pg, d.p}, "LastCommit", 5*ms, 300*ms, func(ctx context.Context) (cluster.LastWrite, error) {
		if d.h.pg.position().Timeline == 0 || !d.p.pgRuns() {
			return cluster.LastWrite{}, ErrNotRunning
		}
		return d.fakeDivergence.LastCommit(ctx, after)
	})
	if err == nil { // the clock is read when the commit has been found
		w.Clock = time.Now().Add(d.h.fast)
	}
	return w, err
}

func (p *proc) pgRuns() bool {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return p.pg.running
}

func (d simDivergence) SkipTimelines(ctx context.Context, n int) error {
	_, err := call(ctx, simPG{d.h.pg, d.p}, "SkipTimelines", 1*ms, 30*ms, func(ctx context.Context) (bool, error) {
		if !d.p.pgRuns() {
			return false, ErrNotRunning
		}
		return true, d.fakeDivergence.SkipTimelines(ctx, n)
	})
	return err
}

func (d simDivergence) Keep(ctx context.Context, _ cluster.LSN) error {
	return d.p.local(ctx, "Keep", 200*us, 5*ms, func() error { return nil })
}

// Export takes its time, and is nothing before its end.
func (d simDivergence) Export(ctx context.Context, epoch cluster.Epoch, fork cluster.LSN, wrote []cluster.Timeline) error {
	_, err := call(ctx, simPG{d.h.pg, d.p}, "Export", 20*ms, 800*ms, func(ctx context.Context) (bool, error) {
		d.p.s.mu.Lock()
		refused := d.h.pg.failExports > 0
		if refused {
			d.h.pg.failExports--
		}
		d.p.s.mu.Unlock()
		if refused {
			return false, errExport
		}
		d.p.s.tell(d.p.name, "exports what lies after %s", fork)
		if err := d.fakeDivergence.Export(ctx, epoch, fork, wrote); err != nil {
			return false, err
		}
		d.p.s.exports(d.h, fork)
		return true, nil
	})
	return err
}

func (s simPeers) Rally(ctx context.Context, node cluster.Node) (cluster.Answer, error) {
	return ask(ctx, s.p, node.Name, "Rally", func(ctx context.Context, h *Handler) (cluster.Answer, error) { return h.Rally(ctx) })
}

func (s simPeers) Claim(ctx context.Context, node cluster.Node, a cluster.Answer) error {
	_, err := ask(ctx, s.p, node.Name, "Claim", func(ctx context.Context, h *Handler) (bool, error) {
		err := h.Claim(ctx, a)
		s.p.s.tell(h.Node, "answers the claim of %s: %v", a.Node, err)
		s.p.s.count("claims")
		return true, err
	})
	return err
}

func (s simPeers) LastWrite(ctx context.Context, node cluster.Node, after cluster.LSN) (cluster.LastWrite, error) {
	return ask(ctx, s.p, node.Name, "LastWrite", func(ctx context.Context, h *Handler) (cluster.LastWrite, error) { return h.LastWrite(ctx, after) })
}

// at is a point in time on the clock of a host.
func (h *host) at(t time.Time) time.Time { return t.Add(h.fast) }
