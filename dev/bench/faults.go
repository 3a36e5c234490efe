package bench

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/rig"
	"github.com/understudy-ha/understudy/services"
)

// fault is something that interrupts writes.
type fault struct {
	Name, Title   string
	Target, Worst time.Duration // wanted median and maximum; 0: none
	Others        string        // measured with the same client on a machine of this kind
	calm          bool          // it waits until Consul's leader is on another node
	stays         bool          // no change of active is called for
	watched       bool          // on every node, for two that acknowledge writes at once
	lasts         func(Options) time.Duration
	do            func(ctx context.Context, b *bench, w *probe.Writer, s rig.Status) error
}

var faults = []fault{
	{Name: "kill-postgres", Title: "kill -9 of the active's postmaster and children", Target: 500 * time.Millisecond,
		Others: "Patroni 3.0 with Consul 10.8 / 2.4 s; pg_auto_failover 5.1 / 2.8 s", do: killPostgres},
	{Name: "kill-node", Title: "the active node killed whole", Target: 3 * time.Second, Worst: 6 * time.Second,
		Others: "Patroni 11.5 / 6.0 s; pg_auto_failover 53 / 11.5 s", calm: true, do: killNode},
	{Name: "freeze-node", Title: "everything on the active node stopped by SIGSTOP, and thawed later", Target: 3 * time.Second,
		Others: "Patroni 9.7 to 12.7 s; pg_auto_failover 10.5 to 58 s; both up to 600 ms of two writers, asynchronous",
		calm:   true, watched: true, lasts: func(o Options) time.Duration { return o.ThawAfter }, do: freezeNode},
	{Name: "set-active", Title: "set-active", Target: 400 * time.Millisecond,
		Others: "Patroni 1.1 s; pg_auto_failover 1.3 s", do: setActive},
	{Name: "stop-node", Title: "the active node shut down in order", do: stopNode},
	{Name: "nothing", Title: "nothing, for 30 s: how long this machine's disk keeps a write waiting by itself",
		stays: true, lasts: withoutConsulFor, do: nothing},
	{Name: "freeze-consul", Title: "every Consul agent stopped by SIGSTOP for 30 s", Target: 100 * time.Millisecond,
		stays: true, lasts: withoutConsulFor, do: freezeConsul},
	{Name: "kill-consul", Title: "every Consul agent killed, and started 30 s later", Target: 100 * time.Millisecond,
		stays: true, lasts: withoutConsulFor, do: killConsul},
}

func killPostgres(ctx context.Context, b *bench, _ *probe.Writer, s rig.Status) error {
	return dev.Kill(ctx, b.Dir, s.Active, "postgres")
}

// killNode starts the node again when another one takes writes.
func killNode(ctx context.Context, b *bench, w *probe.Writer, s rig.Status) error {
	began := time.Now()
	if err := dev.Kill(ctx, b.Dir, s.Active, dev.All); err != nil {
		return err
	}
	if err := awaitOther(ctx, w, s.Active, began); err != nil {
		return err
	}
	return dev.Start(ctx, b.Dir, s.Active)
}

// awaitOther waits until another node than one has acknowledged a write since a
// moment.
func awaitOther(ctx context.Context, w *probe.Writer, node string, since time.Time) error {
	for w.Last().Node == node || w.Last().At.Before(since) {
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("no other node takes writes: %w", err)
		}
	}
	return nil
}

// freezeNode thaws the node in any case.
func freezeNode(ctx context.Context, b *bench, w *probe.Writer, s rig.Status) error {
	began := time.Now()
	err := dev.Freeze(ctx, b.Dir, s.Active)
	if err == nil {
		err = awaitOther(ctx, w, s.Active, began)
	}
	if err == nil {
		err = pause(ctx, time.Until(began.Add(b.ThawAfter)))
	}
	return errors.Join(err, dev.Thaw(context.WithoutCancel(ctx), b.Dir, s.Active))
}

func setActive(ctx context.Context, b *bench, _ *probe.Writer, s rig.Status) error {
	return b.rig.SetActive(ctx, s.Active, s.Standbys()[0])
}

// stopNode brings the node up again when it is down, by when another one has to
// take writes.
func stopNode(ctx context.Context, b *bench, w *probe.Writer, s rig.Status) error {
	began := time.Now()
	if err := dev.Stop(ctx, b.Dir, s.Active); err != nil {
		return err
	}
	if err := awaitOther(ctx, w, s.Active, began); err != nil {
		return err
	}
	return dev.Start(ctx, b.Dir, s.Active)
}

// nothing is what the faults that last, and should cost nothing, are to be compared with.
func nothing(ctx context.Context, b *bench, _ *probe.Writer, _ rig.Status) error {
	return b.withoutConsul(ctx, func() error { return nil }, func(context.Context) error { return nil })
}

func withoutConsulFor(Options) time.Duration { return 30 * time.Second }

func freezeConsul(ctx context.Context, b *bench, _ *probe.Writer, _ rig.Status) error {
	signal := func(ctx context.Context, sig syscall.Signal) error {
		return b.rig.OnAll(func(n dev.NodeInfo) error { return dev.Signal(ctx, b.Dir, n.Name, "consul", sig) })
	}
	return b.withoutConsul(ctx, func() error { return signal(ctx, syscall.SIGSTOP) },
		func(ctx context.Context) error { return signal(ctx, syscall.SIGCONT) })
}

// killConsul has the init of every node stop the unit after the kill: else it
// would start it again after a second.
func killConsul(ctx context.Context, b *bench, _ *probe.Writer, _ rig.Status) error {
	const unit = "understudy-consul.service"
	inits := func(do func(*services.Exec) error) error {
		return b.rig.OnAll(func(n dev.NodeInfo) error { return do(services.NewExec(config.Paths(n.Root).InitSocket())) })
	}
	return b.withoutConsul(ctx, func() error {
		return inits(func(init *services.Exec) error {
			return errors.Join(init.Kill(ctx, unit, syscall.SIGKILL), init.Stop(ctx, unit))
		})
	}, func(ctx context.Context) error {
		return inits(func(init *services.Exec) error { return init.Start(ctx, unit) })
	})
}

// withoutConsul takes Consul away for a while, brings it back in any case, and
// waits until what follows from its return has come to rest.
func (b *bench) withoutConsul(ctx context.Context, take func() error, bring func(context.Context) error) error {
	err := take()
	if err == nil {
		err = pause(ctx, withoutConsulFor(b.Options))
	}
	if err := errors.Join(err, bring(context.WithoutCancel(ctx))); err != nil {
		return err
	}
	return pause(ctx, settle)
}
