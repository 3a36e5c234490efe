package handlerrunner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

const (
	us = time.Microsecond
	ms = time.Millisecond
)

// simPG is the server and the directory of a host, with time and faults.
type simPG struct {
	*fakePG
	p *proc
}

var (
	_ Postgres    = simPG{}
	_ Replication = simPG{}
	_ Directory   = simPG{}
	_ Units       = simUnits{}
)

// call does something with the server that gives a value.
func call[T any](ctx context.Context, g simPG, op string, least, most time.Duration, do func(context.Context) (T, error)) (T, error) {
	var none T
	d, err := g.p.pass(ctx, op, least, most)
	if err != nil {
		return none, err
	}
	v, err := do(ctx)
	if err := g.p.after(d, op); err != nil {
		return none, err
	}
	return v, err
}

func (g simPG) Observe(ctx context.Context) (Database, error) {
	return call(ctx, g, "Observe", 200*us, 2*ms, func(ctx context.Context) (Database, error) {
		g.p.s.mu.Lock()
		stopping := g.stopping
		g.p.s.mu.Unlock()
		if stopping {
			return Database{}, errors.New("the database system is shutting down")
		}
		return g.fakePG.Observe(ctx)
	})
}

func (g simPG) Promote(ctx context.Context) (cluster.Position, error) {
	return call(ctx, g, "Promote", 10*ms, 150*ms, func(ctx context.Context) (cluster.Position, error) {
		g.p.s.mu.Lock()
		g.hangUp()
		g.p.s.mu.Unlock()
		part := false
		if handler := g.p.of(); handler != nil {
			_, d, _ := handler.snapshot()
			part = d.State == cluster.ActiveMinority
		}
		g.p.s.mu.Lock()
		already := g.primary
		g.part = part
		g.p.s.mu.Unlock()
		pos, err := g.fakePG.Promote(ctx)
		if err == nil && !already {
			g.p.s.makes(g.p.host, part)
		}
		g.p.s.opened(g.p.host)
		return pos, err
	})
}

func (g simPG) SetQuorum(ctx context.Context, q cluster.Quorum) error {
	_, err := call(ctx, g, "SetQuorum", 1*ms, 10*ms, func(ctx context.Context) (bool, error) {
		g.p.s.tell(g.p.name, "waits for %s", q)
		return true, g.fakePG.SetQuorum(ctx, q)
	})
	return err
}

func (g simPG) Gate(ctx context.Context, open bool) error {
	_, err := call(ctx, g, "Gate", 1*ms, 10*ms, func(ctx context.Context) (bool, error) {
		err := g.fakePG.Gate(ctx, open)
		g.p.s.opened(g.p.host)
		return true, err
	})
	return err
}

func (g simPG) checkpoint(ctx context.Context) error {
	_, err := call(ctx, g, "Checkpoint", 2*ms, 200*ms, func(ctx context.Context) (bool, error) { return true, g.fakePG.checkpoint(ctx) })
	return err
}

func (g simPG) Detach(ctx context.Context) (cluster.Position, error) {
	return call(ctx, g, "PG.Detach", 1*ms, 60*ms, g.fakePG.Detach)
}

func (g simPG) Follow(ctx context.Context, up cluster.Upstream) error {
	_, err := call(ctx, g, "Follow", 1*ms, 30*ms, func(ctx context.Context) (bool, error) {
		g.p.s.mu.Lock()
		g.hangUp()
		g.p.s.mu.Unlock()
		return true, g.fakePG.Follow(ctx, up)
	})
	return err
}

func (g simPG) Slots(ctx context.Context, t cluster.Tenure, nodes []string) error {
	_, err := call(ctx, g, "Slots", 1*ms, 10*ms, func(ctx context.Context) (bool, error) { return true, g.fakePG.Slots(ctx, t, nodes) })
	return err
}

func (g simPG) History(ctx context.Context, tl cluster.Timeline) (cluster.History, error) {
	return call(ctx, g, "History", 50*us, 500*us, func(ctx context.Context) (cluster.History, error) {
		return g.fakePG.History(ctx, tl)
	})
}

func (g simPG) Final(ctx context.Context) (cluster.Position, error) {
	return call(ctx, g, "Final", 1*ms, 20*ms, g.fakePG.Final)
}

func (g simPG) Rewind(ctx context.Context, source cluster.Upstream) error {
	if _, err := g.p.pass(ctx, "Rewind", 1*ms, 20*ms); err != nil {
		return err
	}
	g.p.s.tell(g.p.name, "rewind from %s begins", source.Name)
	g.begin(source, true)
	g.p.s.copying(g.p.host)
	_, err := call(ctx, g, "rewinding", 50*ms, 600*ms, func(context.Context) (bool, error) { return true, g.rewound(source) })
	g.p.s.copied(g.p.host, err)
	return err
}

func (g simPG) Clone(ctx context.Context, source cluster.Upstream, progress func(string)) error {
	progress("cloning from " + source.Name)
	_, err := call(ctx, g, "cloning", 300*ms, 3*time.Second, func(context.Context) (bool, error) { return true, g.cloned(source) })
	g.p.s.copied(g.p.host, err)
	return err
}

// of is the handler that this process is.
func (p *proc) of() *Handler {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return p.handler
}

// simUnits are the units of a host, with time and faults.
type simUnits struct {
	*fakeUnits
	p *proc
}

func (u simUnits) Start(ctx context.Context, unit string) error {
	d, err := u.p.pass(ctx, "Start "+unit, 10*ms, 200*ms)
	if err != nil {
		return err
	}
	u.p.s.tell(u.p.name, "starts %s", unit)
	if err := u.fakeUnits.Start(ctx, unit); err != nil {
		return err
	}
	return u.p.after(d, "Start "+unit)
}

func (u simUnits) Stop(ctx context.Context, unit string) error {
	d, err := u.p.pass(ctx, "Stop "+unit, 2*ms, 30*ms)
	if err != nil {
		return err
	}
	if unit == pgUnit {
		err = u.shutDown(ctx, d)
	} else {
		err = u.fakeUnits.Stop(ctx, unit)
	}
	if err := u.p.after(d, "Stop "+unit); err != nil {
		return err
	}
	return err
}

// shutDown is a fast shutdown: no client stays, and the server waits until every
// standby that is connected has all WAL, or until it is killed.
func (u simUnits) shutDown(ctx context.Context, d *dice) error {
	s, pg := u.p.s, u.h.pg
	for {
		s.mu.Lock()
		switch {
		case u.stuck[pgUnit] && pg.running:
			s.mu.Unlock()
			<-ctx.Done()
			return fmt.Errorf("unit %s does not stop", pgUnit)
		case pg.running && pg.primary && !pg.stopping:
			pg.stopping, pg.gate, pg.waiting = true, false, nil
			s.records--
			pg.wal = append(pg.wal, s.records)
			pg.unflushed++
		case pg.running && (!pg.primary || pg.sent()):
			pg.unflushed = 0
			pg.stop(true)
			s.tell(u.p.name, "PostgreSQL has stopped")
		}
		running := pg.running
		s.mu.Unlock()
		if !running {
			return nil
		}
		if err := sleep(ctx, 3*ms); err != nil {
			return err
		}
		if err := u.p.awake(d); err != nil {
			return err
		}
	}
}

// sent says that every standby that is connected has all WAL.
func (p *fakePG) sent() bool {
	for _, st := range p.out {
		if !st.left && st.confirmed < len(p.wal) {
			return false
		}
	}
	return p.unflushed == 0
}

func (u simUnits) Kill(ctx context.Context, unit string) error {
	d, err := u.p.pass(ctx, "Kill "+unit, 1*ms, 10*ms)
	if err != nil {
		return err
	}
	u.p.s.tell(u.p.name, "kills %s", unit)
	if err := u.fakeUnits.Kill(ctx, unit); err != nil {
		return err
	}
	return u.p.after(d, "Kill "+unit)
}
