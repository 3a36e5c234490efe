package chaos

import (
	"context"
	"fmt"
	"maps"
	"syscall"

	"github.com/understudy-ha/understudy/dev"
)

// act does a step from its beginning to its end, and undoes what does not go
// by itself. A step whose moment does not come gives an error that wraps errMissed;
// it is undone all the same.
type act func(ctx context.Context, a *arena, s Step, node string) error

// acts says how each kind is done.
func acts() map[Kind]act {
	all := kills()
	maps.Copy(all, freezes())
	maps.Copy(all, cuts())
	maps.Copy(all, others())
	return all
}

func kills() map[Kind]act {
	return map[Kind]act{
		KillPostgres: func(ctx context.Context, a *arena, _ Step, node string) error {
			return dev.Kill(ctx, a.Dir, node, "postgres")
		},
		KillPostmaster: killPostmaster,
		KillDaemon: func(ctx context.Context, a *arena, s Step, node string) error {
			return dev.Kill(ctx, a.Dir, node, s.Daemon)
		},
		KillConsul: func(ctx context.Context, a *arena, _ Step, node string) error {
			return dev.Kill(ctx, a.Dir, node, "consul")
		},
		KillRaftLeader: func(ctx context.Context, a *arena, _ Step, _ string) error {
			leader, err := a.RaftLeader(ctx)
			if err != nil {
				return fmt.Errorf("%w: %w", errMissed, err)
			}
			return dev.Kill(ctx, a.Dir, leader, "consul")
		},
		KillAllConsul: func(ctx context.Context, a *arena, _ Step, _ string) error {
			return a.OnAll(func(n dev.NodeInfo) error { return dev.Kill(ctx, a.Dir, n.Name, "consul") })
		},
		KillNode: func(ctx context.Context, a *arena, s Step, node string) error {
			return hold(ctx, s, func() error { return dev.Kill(ctx, a.Dir, node, dev.All) },
				func(ctx context.Context) error { return dev.Start(ctx, a.Dir, node) })
		},
		KillAllNodes: func(ctx context.Context, a *arena, s Step, _ string) error {
			return hold(ctx, s,
				func() error {
					return a.OnAll(func(n dev.NodeInfo) error { return dev.Kill(ctx, a.Dir, n.Name, dev.All) })
				},
				func(ctx context.Context) error {
					return a.OnAll(func(n dev.NodeInfo) error { return dev.Start(ctx, a.Dir, n.Name) })
				})
		},
	}
}

func freezes() map[Kind]act {
	return map[Kind]act{
		FreezeAllConsul: func(ctx context.Context, a *arena, s Step, _ string) error {
			return a.OnAll(func(n dev.NodeInfo) error { return a.stop(ctx, n.Name, "consul", s) })
		},
		FreezePostgres: func(ctx context.Context, a *arena, s Step, node string) error {
			return a.stop(ctx, node, "postgres", s)
		},
		FreezeDaemon: func(ctx context.Context, a *arena, s Step, node string) error { return a.stop(ctx, node, s.Daemon, s) },
		FreezeNode: func(ctx context.Context, a *arena, s Step, node string) error {
			return hold(ctx, s, func() error { return dev.Freeze(ctx, a.Dir, node) },
				func(ctx context.Context) error { return dev.Thaw(ctx, a.Dir, node) })
		},
	}
}

func cuts() map[Kind]act {
	return map[Kind]act{
		Isolate: func(ctx context.Context, a *arena, s Step, node string) error {
			return a.cut(ctx, s, func() error { return a.isolate(ctx, node, true, true) })
		},
		IsolateOneWay: func(ctx context.Context, a *arena, s Step, node string) error {
			return a.cut(ctx, s, func() error { return a.isolate(ctx, node, s.Out, !s.Out) })
		},
		CutLink: func(ctx context.Context, a *arena, s Step, node string) error {
			return a.cut(ctx, s, func() error { return dev.Cut(ctx, a.Dir, node, a.peer(node, s.Pick), false) })
		},
		CutLinkOneWay: func(ctx context.Context, a *arena, s Step, node string) error {
			from, to := a.peer(node, s.Pick), node
			if s.Out {
				from, to = to, from
			}
			return a.cut(ctx, s, func() error { return dev.Cut(ctx, a.Dir, from, to, true) })
		},
	}
}

func others() map[Kind]act {
	return map[Kind]act{
		DiskFull: func(ctx context.Context, a *arena, s Step, node string) error {
			n, _ := a.Node(node)
			return hold(ctx, s, func() error {
				if err := fill(n.Root); err != nil {
					return err
				}
				a.useWAL(ctx)
				return nil
			}, func(context.Context) error { return empty(n.Root) })
		},
		ShiftClock: func(ctx context.Context, a *arena, s Step, node string) error {
			n, _ := a.Node(node)
			return hold(ctx, s, func() error { return shift(n.Root, s.Shift) }, func(context.Context) error { return shift(n.Root, 0) })
		},
		SetActive: func(ctx context.Context, a *arena, s Step, node string) error {
			active := a.newest().Node
			if node == active {
				node = a.peer(active, s.Pick)
			}
			// It is refused where the target could not take over: that is its duty.
			if err := a.Rig.SetActive(ctx, active, node); err != nil {
				return fmt.Errorf("%w: %w", errMissed, err)
			}
			return nil
		},
		DuringPromotion: duringPromotion,
		DuringRewind: func(ctx context.Context, a *arena, s Step, node string) error {
			return a.duringCopy(ctx, s, node, false)
		},
		DuringClone: func(ctx context.Context, a *arena, s Step, node string) error {
			return a.duringCopy(ctx, s, node, true)
		},
	}
}

// hold does something, waits, and undoes it, also when it was done in part or ctx
// has ended meanwhile.
func hold(ctx context.Context, s Step, do func() error, undo func(context.Context) error) error {
	err := do()
	if err == nil {
		err = pause(ctx, s.Hold)
	}
	if undone := undo(context.WithoutCancel(ctx)); err == nil {
		err = undone
	}
	return err
}

// cut is hold for what dev.Heal undoes.
func (a *arena) cut(ctx context.Context, s Step, do func() error) error {
	return hold(ctx, s, do, func(ctx context.Context) error { return dev.Heal(ctx, a.Dir) })
}

// stop freezes one component of a node for a while.
func (a *arena) stop(ctx context.Context, node, component string, s Step) error {
	return hold(ctx, s, func() error { return dev.Signal(ctx, a.Dir, node, component, syscall.SIGSTOP) },
		func(ctx context.Context) error { return dev.Signal(ctx, a.Dir, node, component, syscall.SIGCONT) })
}

func killPostmaster(ctx context.Context, a *arena, _ Step, node string) error {
	pid, err := a.postmaster(ctx, node)
	if err != nil {
		return fmt.Errorf("%w: %w", errMissed, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("%w: kill %d: %w", errMissed, pid, err)
	}
	return nil
}

// duringPromotion takes the active node's PostgreSQL away and strikes the node
// that is named in its place.
func duringPromotion(ctx context.Context, a *arena, s Step, _ string) error {
	before := a.newest()
	if err := dev.Kill(ctx, a.Dir, before.Node, "postgres"); err != nil {
		return err
	}
	named, err := a.epochAfter(ctx, before.Epoch)
	if err != nil {
		return err
	}
	return a.strike(ctx, s, named.Node, before.Node)
}

// duringCopy takes a node down, lets the others go on without it, and strikes it
// when it rewinds or clones after it has come back.
func (a *arena) duringCopy(ctx context.Context, s Step, node string, wiped bool) error {
	before := a.newest()
	if !wiped {
		if err := a.diverge(ctx, node); err != nil {
			return err
		}
	}
	if err := dev.Kill(ctx, a.Dir, node, dev.All); err != nil {
		return err
	}
	if err := dev.Heal(context.WithoutCancel(ctx), a.Dir); err != nil {
		return err
	}
	defer func() { _ = dev.Start(context.WithoutCancel(ctx), a.Dir, node) }()
	if wiped {
		if err := a.wipe(node); err != nil {
			return err
		}
	} else if _, err := a.epochAfter(ctx, before.Epoch); err != nil {
		return err
	}
	if err := pause(ctx, s.Hold); err != nil {
		return err
	}
	if err := dev.Start(ctx, a.Dir, node); err != nil {
		return err
	}
	err := await(ctx, node+" rewinds or clones", func() bool { return a.state(ctx, node) == "rejoining" })
	if err != nil {
		return err
	}
	return a.strike(ctx, s, node, a.newest().Node)
}

// diverge has the active node write WAL that no other node gets: from behind a
// cut, where this user can cut, else faster than it can be sent.
func (a *arena) diverge(ctx context.Context, node string) error {
	if a.have.root {
		if err := a.isolate(ctx, node, true, true); err != nil {
			return err
		}
	}
	target, _ := a.Sides(node)
	a.onDatabase(ctx, target, 1, `select set_config('synchronous_commit', 'local', true), pg_logical_emit_message(true, 'chaos', repeat('x', 1000000))`)
	return nil
}

// strike does what a step has in store for its moment. Nodes are started and
// thawed, and links healed, after as long as the step lasts.
func (a *arena) strike(ctx context.Context, s Step, node, source string) error {
	if err := pause(ctx, s.Delay); err != nil {
		return err
	}
	kind := map[Strike]Kind{StrikePostgres: KillPostgres, StrikeHandler: KillDaemon, StrikeNode: KillNode,
		StrikeFreeze: FreezeNode, StrikeIsolate: Isolate, StrikeSource: KillPostgres}[s.Strike]
	if s.Strike == StrikeSource {
		node = source
	}
	s.Daemon = "handler-runner"
	return acts()[kind](ctx, a, s, node)
}
