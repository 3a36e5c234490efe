package main

import (
	"context"
	"errors"
	"time"

	"github.com/understudy-ha/understudy/checkrunner"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/registry"
	"github.com/understudy-ha/understudy/services"
)

// consul is the registry, as long as it holds this host's cluster.
type consul struct {
	host *node.Host
	*registry.Client
}

func (c consul) Register(ctx context.Context, ttls map[cluster.Check]time.Duration) error {
	return c.RegisterChecks(ctx, c.host.Record.Node.Name, ttls)
}

func (c consul) Told(ctx context.Context) (bool, error) {
	return c.Client.Told(ctx, c.host.Record.Node.Name)
}

func (c consul) Watch(ctx context.Context, changed func(cluster.View)) error {
	return c.Client.Watch(ctx, func(v cluster.View) {
		if err := node.SameCluster(c.host.Record, v); err != nil {
			c.host.Log.Error("registry", "error", err)
			return
		}
		changed(v)
	}, nil)
}

// postgres is the local server, in check-runner's words.
type postgres struct{ *pgrepl.Server }

func (p postgres) Role(ctx context.Context) (checkrunner.Role, error) {
	o := p.Observe(ctx)
	if o.State != pgrepl.StateUp {
		return checkrunner.Role{}, errors.New(o.Problem)
	}
	r := checkrunner.Role{Primary: o.Primary, UpstreamHost: o.Upstream, Streaming: o.Streaming(),
		LagBytes: -1, Timeline: o.Position.Timeline}
	if o.UpstreamEnd > 0 {
		r.LagBytes = int64(o.UpstreamEnd - min(o.Replayed, o.UpstreamEnd))
	}
	return r, nil
}

// units is the unit manager, in check-runner's words.
type units struct{ node.Units }

// State tells a unit that is down for good from one that is on its way.
func (u units) State(ctx context.Context, unit string) (cluster.Tri, string, error) {
	s, err := u.Units.State(ctx, unit)
	switch {
	case errors.Is(err, services.ErrUnknownUnit):
		return cluster.No, "no such unit", nil
	case err != nil:
		return cluster.Unknown, "", err
	case s.Active != cluster.No:
		return s.Active, s.Sub, nil
	}
	switch s.Sub {
	case services.SubDead, services.SubFailed:
		return cluster.No, s.Sub, nil
	}
	return cluster.Unknown, s.Sub, nil
}

// Events implements checkrunner.UnitEvents where the unit manager can watch.
func (u units) Events(ctx context.Context, changed func(unit string)) error {
	manager, ok := u.Units.(interface {
		Watch(ctx context.Context, changed func(unit string, s services.State)) error
	})
	if !ok {
		<-ctx.Done()
		return ctx.Err()
	}
	return manager.Watch(ctx, func(unit string, _ services.State) { changed(unit) })
}

var (
	_ checkrunner.Poster     = consul{}
	_ checkrunner.Views      = consul{}
	_ checkrunner.Database   = postgres{}
	_ checkrunner.Units      = units{}
	_ checkrunner.UnitEvents = units{}
)
