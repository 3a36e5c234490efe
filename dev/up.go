package dev

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// UpOptions say what Up makes.
type UpOptions struct {
	Dir          string   // empty: DefaultDir
	Nodes        int      // that can be active; 0: 3
	Runners      int      // beside them
	FirstAddress string   // empty: 127.0.0.11; the others follow it
	Options      []string // handed to cluster start, one --options each
	Bin          string   // folder of our binaries; empty: that of this one
	Progress     io.Writer

	// Prepare, if any, is called for the folder of each node before anything is
	// put into it.
	Prepare func(ctx context.Context, n Node) error
}

// DefaultFirstAddress is the address of the first node.
const DefaultFirstAddress = "127.0.0.11"

// Up makes a dev cluster: it installs the nodes, and then runs the commands that
// an operator would run on real hosts. On a folder that holds a cluster already, or
// one that was left half made, it goes on where that ended and brings up what is
// down.
func Up(ctx context.Context, opts UpOptions) (*Cluster, error) {
	steps := &progress{w: opts.Progress, begin: time.Now()}
	c, err := plan(opts)
	if err != nil {
		return nil, err
	}
	steps.say("dev cluster of %d nodes in %s", len(c.Nodes), c.Dir)
	if opts.Prepare != nil {
		if err := c.each(func(n Node) error { return opts.Prepare(ctx, n) }); err != nil {
			return nil, err
		}
	}
	if err := c.each(func(n Node) error { return c.Install(ctx, n) }); err != nil {
		return nil, err
	}
	steps.say("nodes are installed")
	if err := c.each(func(n Node) error { return c.start(ctx, n) }); err != nil {
		return nil, err
	}
	steps.say("nodes are up")
	var saving sync.Mutex
	if err := c.admit(ctx, 0, steps, &saving); err != nil {
		return nil, err
	}
	// The others join at the same time, as several operators would.
	var joins sync.WaitGroup
	failed := make([]error, len(c.Nodes))
	for i := 1; i < len(c.Nodes); i++ {
		joins.Go(func() { failed[i] = c.admit(ctx, i, steps, &saving) })
	}
	joins.Wait()
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	steps.say("the cluster is up")
	return c, nil
}

// admit makes a node a member: the first by starting the cluster, the others by
// joining it.
func (c *Cluster) admit(ctx context.Context, i int, steps *progress, saving *sync.Mutex) error {
	n := c.Nodes[i]
	if n.Member {
		steps.say("%s is a member already", n.Name)
		return nil
	}
	do := c.clusterJoin
	if i == 0 {
		do = c.clusterStart
	}
	if err := do(ctx, n, steps); err != nil {
		return err
	}
	saving.Lock()
	defer saving.Unlock()
	c.Nodes[i].Member = true
	return c.save()
}

// plan takes up the cluster of the folder, or lays out a new one.
func plan(opts UpOptions) (*Cluster, error) {
	if opts.Dir == "" {
		opts.Dir = DefaultDir()
	}
	if opts.Nodes == 0 {
		opts.Nodes = 3
	}
	if opts.FirstAddress == "" {
		opts.FirstAddress = DefaultFirstAddress
	}
	if opts.Nodes < 1 || opts.Nodes > 9 {
		return nil, fmt.Errorf("dev up: %w: a dev cluster has 1 to 9 nodes, not %d", ErrUsage, opts.Nodes)
	}
	if opts.Runners < 0 || opts.Runners > 9 {
		return nil, fmt.Errorf("dev up: %w: a dev cluster has 0 to 9 runners, not %d", ErrUsage, opts.Runners)
	}
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return nil, fmt.Errorf("dev up: %w", err)
	}
	c, err := Open(dir)
	if err == nil {
		if n := len(c.managers()); n != opts.Nodes || len(c.Nodes)-n != opts.Runners {
			return nil, fmt.Errorf("dev up: %w: %s holds a dev cluster of %d nodes and %d runners; 'understudy dev down --dir %s' first, or ask for as many", ErrUsage, dir, n, len(c.Nodes)-n, dir)
		}
		return c, nil
	}
	if !errors.Is(err, ErrNoCluster) {
		return nil, err
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("dev up: %w: %s holds other files; choose another --dir", ErrUsage, dir)
	}
	found, err := FindBinaries(opts.Bin)
	if err != nil {
		return nil, fmt.Errorf("dev up: %w", err)
	}
	nodes, err := newNodes(dir, opts.Nodes, opts.Runners, opts.FirstAddress)
	if err != nil {
		return nil, fmt.Errorf("dev up: %w", err)
	}
	var taken []error
	for _, n := range nodes {
		taken = append(taken, checkPorts(n.Address))
	}
	if err := errors.Join(taken...); err != nil {
		return nil, fmt.Errorf("dev up: %w", err)
	}
	found.Dir, found.Options, found.Nodes = dir, opts.Options, nodes
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("dev up: %w", err)
	}
	return &found, found.save()
}

// Install is Install for one of the cluster's nodes.
func (c *Cluster) Install(ctx context.Context, n Node) error {
	return Install(ctx, NodeSpec{
		Root: n.Root, Name: n.Name, Address: n.Address, Kind: n.Kind, Managers: c.managers(),
		Bin: c.Bin, Consul: c.Consul, PostgresBin: c.PostgresBin,
	})
}

// each does the same on all nodes at once, and returns all errors.
func (c *Cluster) each(do func(Node) error) error {
	var wg sync.WaitGroup
	failed := make([]error, len(c.Nodes))
	for i, n := range c.Nodes {
		wg.Go(func() { failed[i] = do(n) })
	}
	wg.Wait()
	return errors.Join(failed...)
}

func (c *Cluster) clusterStart(ctx context.Context, n Node, steps *progress) error {
	args := []string{"cluster", "start", "--cluster-host-ip", n.Address, "--cluster-node-name", n.Name}
	for _, o := range c.Options {
		args = append(args, "--options", o)
	}
	_, err := c.command(ctx, n, steps, args...)
	return err
}

func (c *Cluster) clusterJoin(ctx context.Context, n Node, steps *progress) error {
	first := c.Nodes[0]
	var kind []string
	if n.runner() {
		kind = []string{"--kind", string(n.Kind)}
	}
	out, err := c.command(ctx, first, nil, slices.Concat([]string{"cluster", "token", "create", "--node", n.Name, "--json"}, kind)...)
	if err != nil {
		return err
	}
	var created struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(out, &created); err != nil || created.Token == "" {
		return fmt.Errorf("create a token on %s: no token in %q", first.Name, out)
	}
	join := []string{"cluster", "join", "--cluster-host-ip", n.Address, "--cluster-node-name", n.Name, "--token", created.Token}
	_, err = c.command(ctx, n, steps, slices.Concat(join, kind, []string{first.Address})...)
	return err
}

// command runs understudy as an operator on a node would. What it prints is
// passed on to steps as it comes, and returned. A context that ends interrupts it
// like Ctrl-C does.
func (c *Cluster) command(ctx context.Context, n Node, steps *progress, args ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, filepath.Join(c.Bin, "understudy"), append([]string{"--root", n.Root}, args...)...)
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGINT) }
	command.WaitDelay = callTimeout
	var out, problem bytes.Buffer
	command.Stdout, command.Stderr = &out, &problem
	if steps != nil {
		words := append([]string{}, args...)
		for i := range words {
			if i > 0 && words[i-1] == "--token" {
				words[i] = "..."
			}
		}
		steps.say("%s: understudy %s", n.Name, strings.Join(words, " "))
		command.Stdout = io.MultiWriter(&out, steps.lines(n.Name))
		command.Stderr = io.MultiWriter(&problem, steps.lines(n.Name))
	}
	if err := command.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("on %s, understudy %s: %w: %s; the same command again goes on from here",
			n.Name, strings.Join(args[:2], " "), err, strings.TrimSpace(problem.String()))
	}
	return out.Bytes(), nil
}

// progress prints one line per step with the time since the beginning.
type progress struct {
	mu    sync.Mutex
	w     io.Writer // nil: nowhere
	begin time.Time
}

func (p *progress) say(format string, args ...any) {
	if p.w == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, "[%5.1fs] %s\n", time.Since(p.begin).Seconds(), fmt.Sprintf(format, args...))
}

// lines returns a writer that says each line that is written to it.
func (p *progress) lines(name string) io.Writer { return &lineWriter{p: p, name: name} }

type lineWriter struct {
	p    *progress
	name string
	rest []byte
}

func (l *lineWriter) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		n, line, err := bufio.ScanLines(l.rest, false)
		if err != nil || n == 0 {
			return len(b), nil
		}
		l.p.say("%s | %s", l.name, line)
		l.rest = l.rest[n:]
	}
}

// initLog is the log of an init and of its guard, which is their output.
func initLog() *slog.Logger { return slog.New(slog.NewTextHandler(os.Stderr, nil)) }
