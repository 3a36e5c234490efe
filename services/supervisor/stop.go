package supervisor

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/understudy-ha/understudy/services"
	"github.com/understudy-ha/understudy/services/proctree"
	"github.com/understudy-ha/understudy/services/unitfile"
)

// group is the processes of a unit: the one that was started, what is below it,
// and the orphans that were below one that died.
type group struct {
	sup *Supervisor

	mu      sync.Mutex
	lead    int // PID of the process that was started; 0: it is dead
	orphans []proctree.Process
}

// run starts the leading process.
func (g *group) run(l launch) (child, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c, err := g.sup.processes.run(l)
	if err == nil {
		g.lead = c.pid
	}
	return c, err
}

// dead is to be called when the leading process has been reaped. Its children
// are children of the init now: it claims those that nobody else has.
func (g *group) dead(c child) {
	g.sup.adopting.Lock()
	defer g.sup.adopting.Unlock()
	g.mu.Lock()
	g.lead = 0
	g.mu.Unlock()
	table, err := proctree.Snapshot()
	if err != nil {
		g.sup.log.Error("look for orphans", "error", err)
		return
	}
	for _, pid := range table.Children(syscall.Getpid()) {
		p := table[pid]
		// A session that another unit's leading process has made is that unit's.
		others := p.Session != c.pid && g.sup.processes.main(p.Session)
		if p.State == 'Z' || others || g.sup.processes.main(pid) || g.sup.claimed(p) {
			continue
		}
		g.mu.Lock()
		g.orphans = append(g.orphans, p)
		g.mu.Unlock()
	}
}

// claimed says whether an orphan belongs to a unit already.
func (s *Supervisor) claimed(p proctree.Process) bool {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.services))
	s.mu.Unlock()
	return slices.ContainsFunc(all, func(svc *service) bool {
		svc.group.mu.Lock()
		defer svc.group.mu.Unlock()
		return slices.ContainsFunc(svc.group.orphans, func(o proctree.Process) bool {
			return o.PID == p.PID && o.Started == p.Started
		})
	})
}

// living returns all processes of the group, parents first.
func (g *group) living() []int {
	table, err := proctree.Snapshot()
	if err != nil {
		g.sup.log.Error("look for processes", "error", err)
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var roots []int
	if g.lead != 0 {
		roots = append(roots, g.lead)
	}
	g.orphans = slices.DeleteFunc(g.orphans, func(o proctree.Process) bool {
		p, ok := table[o.PID]
		return !ok || p.Started != o.Started || p.State == 'Z'
	})
	for _, o := range g.orphans {
		roots = append(roots, o.PID)
	}
	var pids []int
	for _, root := range roots {
		pids = append(append(pids, root), table.Descendants(root)...)
	}
	return pids
}

func (g *group) any() bool { return len(g.living()) > 0 }

// signal sends a signal to the whole group.
func (g *group) signal(sig syscall.Signal) {
	for _, pid := range g.living() {
		send(pid, sig)
	}
}

// send sends a signal, and wakes a process that is stopped so that it can act on
// it, as systemd does.
func send(pid int, sig syscall.Signal) {
	if syscall.Kill(pid, sig) == nil && sig != syscall.SIGKILL && sig != syscall.SIGCONT && sig != syscall.SIGSTOP {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
}

// terminate stops a unit whose leading process lives: KillSignal, then
// FinalKillSignal when TimeoutStop is up. It returns when no process is left, or
// when not even the final signal has helped.
func (s *service) terminate(spec unitfile.Unit, c child) string {
	s.become(services.SubStop, c.pid, services.ResultSuccess)
	if spec.KillMode == "mixed" {
		send(c.pid, spec.KillSignal)
	} else {
		s.group.signal(spec.KillSignal)
	}
	result := services.ResultSuccess
	select {
	case status := <-c.died:
		result = ended(status)
	case <-limit(spec.TimeoutStop):
		result = services.ResultTimeout
		s.become(services.SubFinal, c.pid, result)
		s.group.signal(spec.FinalKillSignal)
		select {
		case <-c.died:
		case <-limit(spec.TimeoutStop):
			return result
		}
	}
	s.group.dead(c)
	if !s.group.end(spec, true) {
		result = services.ResultTimeout
	}
	return result
}

// end ends what a dead leading process has left behind, and says whether it
// could. signalled: the group has got KillSignal already.
func (g *group) end(spec unitfile.Unit, signalled bool) bool {
	if !g.any() {
		return true
	}
	if spec.KillMode == "control-group" {
		if !signalled {
			g.signal(spec.KillSignal)
		}
		if g.gone(spec.TimeoutStop) {
			return true
		}
	}
	g.signal(spec.FinalKillSignal)
	return g.gone(spec.TimeoutStop)
}

// gone waits until the group is empty, at most as long as timeout says.
func (g *group) gone(timeout time.Duration) bool {
	expired := limit(timeout)
	for pause := time.Millisecond; g.any(); pause = min(2*pause, 50*time.Millisecond) {
		select {
		case <-expired:
			return !g.any()
		case <-time.After(pause):
		}
	}
	return true
}

// limit is a timer; 0 never fires.
func limit(d time.Duration) <-chan time.Time {
	if d == 0 {
		return nil
	}
	return time.After(d)
}

// ended says how a process died, in the words of services.State.Result. A
// process that one of the usual signals has ended did as it was told.
func ended(status syscall.WaitStatus) string {
	switch {
	case status.Exited() && status.ExitStatus() == 0:
		return services.ResultSuccess
	case status.Exited():
		return services.ResultExit
	}
	switch status.Signal() {
	case syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE:
		return services.ResultSuccess
	}
	return services.ResultSignal
}

func describe(status syscall.WaitStatus) string {
	if status.Exited() {
		return fmt.Sprintf("exited with status %d", status.ExitStatus())
	}
	return fmt.Sprintf("ended by signal %d (%s)", status.Signal(), status.Signal())
}
