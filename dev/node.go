package dev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/services/proctree"
	"github.com/understudy-ha/understudy/services/supervisor"
)

// How long a node may take to come up, to go down, and to answer a call.
const (
	upTimeout   = 30 * time.Second
	downTimeout = 30 * time.Second
	callTimeout = 5 * time.Second
)

// Start brings up a node that is down, as a boot does: what is enabled is
// started. It returns when the node's init answers. A node that is up is left alone.
func Start(ctx context.Context, dir, node string) error {
	c, n, err := openNode(dir, node)
	if err != nil {
		return err
	}
	return c.start(ctx, n)
}

func (c *Cluster) start(ctx context.Context, n Node) error {
	if _, up := n.record(); up {
		return n.await(ctx, nil)
	}
	l := n.layout()
	if err := os.RemoveAll(filepath.Join(l.Root, "run")); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	if err := makeRun(l); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	logFile := filepath.Join(l.Log, "init.log")
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	defer out.Close()
	guard := exec.Command(filepath.Join(c.Bin, "understudy"), "dev", "guard", "--root", n.Root, "--cgroup", c.cgroup(n))
	guard.Stdout, guard.Stderr, guard.Dir = out, out, "/"
	guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := guard.Start(); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- guard.Wait() }()
	if err := n.await(ctx, ended); err != nil {
		return fmt.Errorf("%w; see %s", err, logFile)
	}
	return nil
}

// await waits until the init of a node answers.
func (n Node) await(ctx context.Context, ended <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		_, err := n.init().States(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("start %s: its init does not answer: %w", n.Name, err)
		case err := <-ended:
			return fmt.Errorf("start %s: its init has ended: %v", n.Name, err)
		case <-time.After(pause):
		}
	}
}

// All is the component that stands for a whole node.
const All = "all"

// Kill sends SIGKILL to all processes of one component of a node (postgres,
// consul, file-sync, check-runner, consul-watcher, handler-runner, postgres-helper, or a unit),
// which its init then restarts; or, for All, to everything on the node at once,
// which nothing restarts. It returns when the processes of All are gone. A node
// that is down already is left alone by All. Errors wrap ErrNoNode and ErrDown.
func Kill(ctx context.Context, dir, node, component string) error {
	if component == "" || component == All {
		_, n, err := openNode(dir, node)
		if err != nil {
			return err
		}
		return n.killAll(ctx)
	}
	return Signal(ctx, dir, node, component, syscall.SIGKILL)
}

// Signal sends a signal to all processes of one component of a node. With SIGSTOP
// and SIGCONT a component is frozen and thawed while the rest of its node goes on.
// Errors wrap ErrNoNode and ErrDown.
func Signal(ctx context.Context, dir, node, component string, sig syscall.Signal) error {
	_, n, err := openNode(dir, node)
	if err != nil {
		return err
	}
	verb := "signal"
	if sig == syscall.SIGKILL {
		verb = "kill"
	}
	r, up := n.record()
	if !up {
		return fmt.Errorf("%s %s on %s: %w; 'understudy dev start %s' brings it up", verb, component, node, ErrDown, node)
	}
	if frozen(r) {
		return fmt.Errorf("%s %s on %s: the node is frozen; 'understudy dev thaw %s' first, or kill all", verb, component, node, node)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := n.init().Kill(ctx, unitOf(component), sig); err != nil {
		return fmt.Errorf("%s %s on %s: %w", verb, component, node, err)
	}
	return nil
}

// killAll is a power cut. The guard, which is not of the node, stays until it
// has seen that nothing is left.
func (n Node) killAll(ctx context.Context) error {
	r, up := n.record()
	if !up {
		return nil
	}
	if err := proctree.SignalBelow(r.Guard.PID, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill %s: %w", n.Name, err)
	}
	if err := n.awaitDown(ctx, r); err != nil {
		return err
	}
	return n.releaseMemory()
}

func (n Node) awaitDown(ctx context.Context, r supervisor.Record) error {
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	for pause := time.Millisecond; r.Guard.Alive(); pause = min(2*pause, 50*time.Millisecond) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("take down %s: processes below %d are left: %w", n.Name, r.Guard.PID, ctx.Err())
		case <-time.After(pause):
		}
	}
	return nil
}

// Freeze stops everything on a node, its init included, with SIGSTOP: it holds
// its connections and says nothing. The error wraps ErrDown when it is down.
func Freeze(_ context.Context, dir, node string) error {
	return signalNode(dir, node, "freeze", syscall.SIGSTOP)
}

// Thaw undoes Freeze with SIGCONT.
func Thaw(_ context.Context, dir, node string) error {
	return signalNode(dir, node, "thaw", syscall.SIGCONT)
}

func signalNode(dir, node, what string, sig syscall.Signal) error {
	_, n, err := openNode(dir, node)
	if err != nil {
		return err
	}
	r, up := n.record()
	if !up {
		return fmt.Errorf("%s %s: %w; 'understudy dev start %s' brings it up", what, node, ErrDown, node)
	}
	if err := proctree.SignalBelow(r.Guard.PID, sig); err != nil {
		return fmt.Errorf("%s %s: %w", what, node, err)
	}
	return nil
}

// Stop shuts a node down in order, as an operator does with a host: an active one
// hands over first. A node that is down already is left alone.
func Stop(ctx context.Context, dir, node string) error {
	_, n, err := openNode(dir, node)
	if err != nil {
		return err
	}
	return n.shutDown(ctx)
}

// shutDown stops a node in order, and with Kill where that takes too long.
func (n Node) shutDown(ctx context.Context) error {
	r, up := n.record()
	if !up {
		return nil
	}
	if !frozen(r) {
		orderly, cancel := context.WithTimeout(ctx, downTimeout)
		defer cancel()
		if err := n.init().Shutdown(orderly); err == nil {
			return n.awaitDown(ctx, r)
		}
	}
	return n.killAll(ctx)
}

// Down stops all nodes, checks that no process is left and deletes the cluster's
// files. With keep the nodes are stopped in order, and their files stay, for Up to
// bring them back. A folder without a cluster is left alone.
func Down(ctx context.Context, dir string, keep bool) error {
	c, err := Open(dir)
	if errors.Is(err, ErrNoCluster) {
		return nil
	}
	if err != nil {
		return err
	}
	failed := []error{c.dropCuts(ctx)}
	failed = append(failed, c.each(func(n Node) error {
		if keep {
			return n.shutDown(ctx)
		}
		return n.killAll(ctx)
	}))
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("take down %s: %w", c.Dir, err)
	}
	if err := c.dropCgroups(ctx); err != nil {
		return fmt.Errorf("take down %s: %w", c.Dir, err)
	}
	if keep {
		return nil
	}
	for _, n := range c.Nodes {
		if err := os.RemoveAll(n.Root); err != nil {
			return fmt.Errorf("delete %s: %w", n.Name, err)
		}
	}
	if err := os.Remove(filepath.Join(c.Dir, clusterFile)); err != nil {
		return fmt.Errorf("delete dev cluster: %w", err)
	}
	// What is not ours stays, and the folder with it.
	_ = os.Remove(c.Dir)
	return nil
}

// releaseMemory lets go of the memory of the killed PostgreSQL, as a host does that
// loses its power.
func (n Node) releaseMemory() error {
	servers, err := filepath.Glob(filepath.Join(n.Root, "var/lib/postgresql/*/main*"))
	for _, dir := range servers {
		err = errors.Join(err, pgrepl.ReleaseMemory(dir))
	}
	return err
}

// RunInit is the init of the node below root; see supervisor.Run.
func RunInit(ctx context.Context, root string) error {
	l := config.Paths(root)
	return supervisor.Run(ctx, supervisor.Options{
		Units: l.Units, Logs: l.Log, Socket: l.InitSocket(), Notify: filepath.Join(l.Run, "notify"), Logger: initLog(),
	})
}

// RunGuard is the guard of the node below root; see supervisor.Guard. argv is
// the init.
func RunGuard(root, cgroup string, argv []string) error {
	return supervisor.Guard(supervisor.GuardOptions{
		Argv: argv, Record: recordFile(config.Paths(root)), Cgroup: cgroup, Logger: initLog(),
	})
}
