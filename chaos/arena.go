package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/dev/rig"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/registry"
)

// arena is the cluster that is hurt.
type arena struct {
	*rig.Rig
	*history
	have means

	mu    sync.Mutex
	looks []Look
	last  Look // the one with the greatest index
}

// watch reads next-master over the agent of every node, again and again, until
// ctx ends.
func (a *arena) watch(ctx context.Context) error {
	var all sync.WaitGroup
	for _, n := range a.Nodes {
		host, err := node.OpenQuiet(n.Root)
		if err != nil {
			return err
		}
		client, err := host.Registry()
		if err != nil {
			return err
		}
		all.Go(func() {
			defer client.Close()
			a.watchOne(ctx, n.Name, client)
		})
	}
	all.Wait()
	return nil
}

const (
	watchEvery = 50 * time.Millisecond
	lookWithin = time.Second
)

func (a *arena) watchOne(ctx context.Context, from string, client *registry.Client) {
	for ctx.Err() == nil {
		try, cancel := context.WithTimeout(ctx, lookWithin)
		call := a.now()
		v, err := client.View(try)
		end := a.now()
		cancel()
		if err == nil && v.NextMasterIndex > 0 {
			a.saw(Look{From: from, Call: call, Return: end, Index: v.NextMasterIndex, Node: v.NextMaster.Node, Epoch: v.NextMaster.Epoch})
		}
		_ = pause(ctx, watchEvery)
	}
}

func (a *arena) saw(l Look) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.looks = append(a.looks, l)
	if l.Index > a.last.Index {
		a.last = l
	}
}

func (a *arena) newest() Look {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}

func (a *arena) allLooks() []Look {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]Look(nil), a.looks...)
}

// momentWithin is how long a moment is waited for.
const momentWithin = 12 * time.Second

// errMissed is the error of a moment that did not come.
var errMissed = errors.New("the moment did not come")

// await waits for a moment.
func await(ctx context.Context, what string, come func() bool) error {
	deadline := time.Now().Add(momentWithin)
	for !come() {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %w within %s", what, errMissed, momentWithin)
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// others are all nodes but one.
func (a *arena) others(name string) []dev.NodeInfo {
	var list []dev.NodeInfo
	for _, n := range a.Nodes {
		if n.Name != name {
			list = append(list, n)
		}
	}
	return list
}

// choose returns the node that a step is about. Who is active is what next-master
// said last.
func (a *arena) choose(s Step) string {
	active := a.newest().Node
	if s.Role == OnActive {
		return active
	}
	standbys := a.others(active)
	return standbys[s.Pick%len(standbys)].Name
}

// peer returns another node.
func (a *arena) peer(name string, pick int) string {
	others := a.others(name)
	return others[pick/7%len(others)].Name
}

// isolate cuts a node from all others; out and in say in which directions.
func (a *arena) isolate(ctx context.Context, name string, out, in bool) error {
	for _, n := range a.others(name) {
		var err error
		switch {
		case out && in:
			err = dev.Cut(ctx, a.Dir, name, n.Name, false)
		case out:
			err = dev.Cut(ctx, a.Dir, name, n.Name, true)
		default:
			err = dev.Cut(ctx, a.Dir, n.Name, name, true)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// state is what a node says that it is.
func (a *arena) state(ctx context.Context, name string) string {
	info, err := dev.Describe(ctx, a.Dir)
	if err != nil {
		return ""
	}
	for _, n := range info.Nodes {
		if n.Name == name {
			return n.State
		}
	}
	return ""
}

// postmaster returns the first process of a node's PostgreSQL.
func (a *arena) postmaster(ctx context.Context, name string) (int, error) {
	info, err := dev.Describe(ctx, a.Dir)
	if err != nil {
		return 0, err
	}
	for _, n := range info.Nodes {
		if pid := n.Pids["postgres"]; n.Name == name && pid != 0 {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("PostgreSQL of %s: %w", name, dev.ErrDown)
}

// wipe takes away the data directory of a node that is down, as a broken disk does.
func (a *arena) wipe(name string) error {
	n, _ := a.Node(name)
	old := filepath.Join(filepath.Dir(n.Postgres.DataDir), "lost")
	if err := os.RemoveAll(old); err != nil {
		return fmt.Errorf("wipe %s: %w", name, err)
	}
	if err := os.Rename(n.Postgres.DataDir, old); err != nil {
		return fmt.Errorf("wipe %s: %w", name, err)
	}
	return os.RemoveAll(old)
}

// heal undoes whatever faults have left behind.
func (a *arena) heal(ctx context.Context) error {
	failed := []error{dev.Heal(ctx, a.Dir)}
	failed = append(failed, a.OnAll(func(n dev.NodeInfo) error {
		if a.have.root {
			if err := empty(n.Root); err != nil {
				return err
			}
		}
		if err := dev.Thaw(ctx, a.Dir, n.Name); err != nil && !errors.Is(err, dev.ErrDown) {
			return err
		}
		return dev.Start(ctx, a.Dir, n.Name)
	}))
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("heal: %w", err)
	}
	return nil
}

// epochAfter waits for a newer epoch than one and returns it.
func (a *arena) epochAfter(ctx context.Context, epoch cluster.Epoch) (Look, error) {
	err := await(ctx, fmt.Sprintf("an epoch after %d", epoch), func() bool { return a.newest().Epoch > epoch })
	return a.newest(), err
}
