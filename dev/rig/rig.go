// Package rig is a dev cluster under test: it is made, hurt, waited for and
// taken down by the same commands that people use.
package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/node"
)

// Rig is a dev cluster.
type Rig struct {
	Dir   string
	Nodes []dev.NodeInfo

	command string // the understudy binary
}

// Up makes a cluster in a folder that holds none. What is left of one that could
// not be made is taken down.
func Up(ctx context.Context, opts dev.UpOptions) (*Rig, error) {
	if _, err := dev.Open(opts.Dir); err == nil {
		return nil, fmt.Errorf("%w: %s holds a dev cluster; 'understudy dev down --dir %s' first, or choose another --dir", dev.ErrUsage, opts.Dir, opts.Dir)
	}
	made, err := dev.Up(ctx, opts)
	if err != nil {
		return nil, errors.Join(err, dev.Down(context.WithoutCancel(ctx), opts.Dir, false))
	}
	r := &Rig{Dir: made.Dir, command: filepath.Join(made.Bin, "understudy")}
	info, err := dev.Describe(ctx, r.Dir)
	if err != nil {
		return nil, errors.Join(err, r.Down(ctx))
	}
	r.Nodes = info.Nodes
	return r, nil
}

// Down takes the cluster down and deletes it, also when ctx has ended.
func (r *Rig) Down(ctx context.Context) error {
	return dev.Down(context.WithoutCancel(ctx), r.Dir, false)
}

// Targets are the databases of the managers. Sessions over loopback are not encrypted.
func (r *Rig) Targets() []probe.Target {
	var targets []probe.Target
	for _, n := range r.Nodes {
		if n.Kind == cluster.Manager {
			targets = append(targets, probe.Target{Node: n.Name, DSN: n.Postgres.DSN + "?sslmode=disable"})
		}
	}
	return targets
}

// Sides returns the target of one node, and those of the others.
func (r *Rig) Sides(node string) (one probe.Target, others []probe.Target) {
	for _, t := range r.Targets() {
		if t.Node == node {
			one = t
		} else {
			others = append(others, t)
		}
	}
	return one, others
}

// Node returns a node by its name.
func (r *Rig) Node(name string) (dev.NodeInfo, bool) {
	for _, n := range r.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return dev.NodeInfo{}, false
}

// OnAll does the same on all nodes at once.
func (r *Rig) OnAll(do func(n dev.NodeInfo) error) error {
	failed := make([]error, len(r.Nodes))
	var all sync.WaitGroup
	for i, n := range r.Nodes {
		all.Go(func() { failed[i] = do(n) })
	}
	all.Wait()
	return errors.Join(failed...)
}

// askWithin bounds a question to one node.
const askWithin = 5 * time.Second

// ask runs a command on the first node that answers it and reads its JSON. A
// command that printed JSON has answered, whatever its exit code.
func (r *Rig) ask(ctx context.Context, v any, args ...string) error {
	var failed []error
	for _, n := range r.Nodes {
		try, cancel := context.WithTimeout(ctx, askWithin)
		out, err := r.Run(try, n, args...)
		cancel()
		if json.Unmarshal(out, v) == nil {
			return nil
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// Run runs understudy as an operator on a node would, and returns what it
// prints, also with an error.
func (r *Rig) Run(ctx context.Context, n dev.NodeInfo, args ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, r.command, append([]string{"--root", n.Root}, args...)...)
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGINT) }
	command.WaitDelay = time.Second
	var problem bytes.Buffer
	command.Stderr = &problem
	out, err := command.Output()
	if err != nil {
		err = fmt.Errorf("on %s, understudy %s: %w: %s", n.Name, strings.Join(args, " "), err, strings.TrimSpace(problem.String()))
	}
	return out, err
}

// Events returns the history from since on, oldest first.
func (r *Rig) Events(ctx context.Context, since time.Time) ([]cluster.Event, error) {
	var events []cluster.Event
	err := r.ask(ctx, &events, "cluster", "events", "--json", "--since", (time.Since(since) + time.Second).String())
	return events, err
}

// SetActive hands over to a node, by the command on the active one.
func (r *Rig) SetActive(ctx context.Context, active, target string) error {
	n, ok := r.Node(active)
	if !ok {
		return fmt.Errorf("set-active: %w: %s", dev.ErrNoNode, active)
	}
	_, err := r.Run(ctx, n, "cluster", "set-active", target)
	return err
}

// SetOption sets one of the cluster's options, NAME=VALUE, by the command on a node.
func (r *Rig) SetOption(ctx context.Context, on, option string) error {
	n, ok := r.Node(on)
	if !ok {
		return fmt.Errorf("set %s: %w: %s", option, dev.ErrNoNode, on)
	}
	_, err := r.Run(ctx, n, "cluster", "options", "set", option)
	return err
}

// RaftLeader names the node whose Consul server leads.
func (r *Rig) RaftLeader(ctx context.Context) (string, error) {
	failed := []error{errors.New("ask for Consul's leader: there is none")}
	for _, n := range r.Nodes {
		leader, ok, err := raftLeader(ctx, n.Root)
		if ok {
			return leader, nil
		}
		failed = append(failed, err)
	}
	return "", errors.Join(failed...)
}

func raftLeader(ctx context.Context, root string) (name string, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	host, err := node.OpenQuiet(root)
	if err != nil {
		return "", false, err
	}
	client, err := host.Registry()
	if err != nil {
		return "", false, err
	}
	defer client.Close()
	return client.RaftLeader(ctx)
}
