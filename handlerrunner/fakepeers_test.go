package handlerrunner

import (
	"context"
	"errors"

	"github.com/understudy-ha/understudy/cluster"
)

// fakePeers is the network between the hosts.
type fakePeers struct{ h *host }

var _ Peers = (*fakePeers)(nil)

// reach waits for a host that answers. Silence lasts until the caller gives up.
func (p *fakePeers) reach(ctx context.Context, name string) (*Handler, error) {
	if err := p.h.pause(ctx, p.h.latency); err != nil {
		return nil, err
	}
	p.h.w.mu.Lock()
	to := p.h.w.hosts[name]
	silent := to == nil || !p.h.reaches(to) || to.frozen()
	var handler *Handler
	if to != nil && !to.dead {
		handler = to.handler
	}
	p.h.w.mu.Unlock()
	switch {
	case silent:
		<-ctx.Done()
		return nil, ctx.Err()
	case handler == nil:
		return nil, errors.New("connection refused")
	}
	return handler, nil
}

func (p *fakePeers) Detach(ctx context.Context, node cluster.Node, epoch cluster.Epoch, seen uint64) (cluster.Answer, error) {
	handler, err := p.reach(ctx, node.Name)
	if err != nil {
		return cluster.Answer{}, err
	}
	return handler.Detach(ctx, p.h.name, epoch, seen)
}

func (p *fakePeers) Lend(ctx context.Context, node cluster.Node, epoch cluster.Epoch) (cluster.Loan, error) {
	handler, err := p.reach(ctx, node.Name)
	if err != nil {
		return cluster.Loan{}, err
	}
	return handler.Lend(ctx, p.h.name, epoch)
}

func (p *fakePeers) Vouch(ctx context.Context, node cluster.Node, active string, epoch cluster.Epoch) (bool, error) {
	handler, err := p.reach(ctx, node.Name)
	if err != nil {
		return false, err
	}
	return handler.Vouch(ctx, active, epoch)
}

func (p *fakePeers) Report(ctx context.Context, node cluster.Node) (cluster.Report, error) {
	handler, err := p.reach(ctx, node.Name)
	if err != nil {
		return cluster.Report{}, err
	}
	return handler.Report(ctx), nil
}
