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

func (d simDivergence) step(ctx context.Context, op string) error {
	return d.p.local(ctx, op, 200*time.Microsecond, 5*time.Millisecond, func() error { return nil })
}

func (d simDivergence) LastCommit(ctx context.Context, after cluster.LSN) (time.Time, error) {
	if err := d.step(ctx, "LastCommit"); err != nil {
		return time.Time{}, err
	}
	return d.fakeDivergence.LastCommit(ctx, after)
}

func (d simDivergence) SkipTimelines(ctx context.Context, n int) error {
	if err := d.step(ctx, "SkipTimelines"); err != nil {
		return err
	}
	return d.fakeDivergence.SkipTimelines(ctx, n)
}

func (d simDivergence) Keep(ctx context.Context, lsn cluster.LSN) error {
	return d.step(ctx, "Keep")
}

func (d simDivergence) Export(ctx context.Context, epoch cluster.Epoch, fork cluster.LSN) error {
	if err := d.step(ctx, "Export"); err != nil {
		return err
	}
	return d.fakeDivergence.Export(ctx, epoch, fork)
}

func (s simPeers) Rally(ctx context.Context, node cluster.Node) (cluster.Answer, error) {
	return ask(ctx, s.p, node.Name, "Rally", func(ctx context.Context, h *Handler) (cluster.Answer, error) { return h.Rally(ctx) })
}

func (s simPeers) Claim(ctx context.Context, node cluster.Node, a cluster.Answer) error {
	_, err := ask(ctx, s.p, node.Name, "Claim", func(ctx context.Context, h *Handler) (bool, error) { return true, h.Claim(ctx, a) })
	return err
}

func (s simPeers) LastWrite(ctx context.Context, node cluster.Node, after cluster.LSN) (cluster.LastWrite, error) {
	return ask(ctx, s.p, node.Name, "LastWrite", func(ctx context.Context, h *Handler) (cluster.LastWrite, error) { return h.LastWrite(ctx, after) })
}
