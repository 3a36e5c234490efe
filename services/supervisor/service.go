package supervisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/services"
	"github.com/understudy-ha/understudy/services/unitfile"
)

// service is one unit. While something is under way, from the first ExecStartPre
// to the death of the last process and through restarts, it has a run and one
// goroutine, loop, that alone drives it.
type service struct {
	sup  *Supervisor
	name string

	mu      sync.Mutex
	state   services.State
	run     *run
	waiters []chan error // calls of start that wait for the present attempt

	group group // the processes
}

// run is what others say to a loop, and what they hear of it.
type run struct {
	stop chan struct{} // closed: end it
	once sync.Once
	kick chan struct{} // start again now, not only after RestartSec
	done chan struct{} // closed: everything is over
	err  error         // of the stop; to be read after done
}

func newService(sup *Supervisor, name string) *service {
	return &service{
		sup: sup, name: name,
		state: services.State{Active: cluster.No, Sub: services.SubDead, Result: services.ResultSuccess},
		group: group{sup: sup},
	}
}

// start returns when the unit runs, or with why it does not.
func (s *service) start() error {
	s.mu.Lock()
	for s.run != nil && s.run.stopping() {
		done := s.run.done
		s.mu.Unlock()
		<-done
		s.mu.Lock()
	}
	if s.sup.isClosing() {
		s.mu.Unlock()
		return fmt.Errorf("start %s: %w: the node is going down", s.name, services.ErrFailed)
	}
	if s.state.Sub == services.SubRunning {
		s.mu.Unlock()
		return nil
	}
	attempt := make(chan error, 1)
	s.waiters = append(s.waiters, attempt)
	if s.run == nil {
		s.run = &run{stop: make(chan struct{}), kick: make(chan struct{}, 1), done: make(chan struct{})}
		go s.loop(s.run)
	} else {
		select {
		case s.run.kick <- struct{}{}:
		default:
		}
	}
	s.mu.Unlock()
	return <-attempt
}

// stop returns when no process is left.
func (s *service) stop() error {
	s.mu.Lock()
	r := s.run
	s.mu.Unlock()
	if r == nil {
		return nil
	}
	r.once.Do(func() { close(r.stop) })
	<-r.done
	return r.err
}

func (r *run) stopping() bool {
	select {
	case <-r.stop:
		return true
	default:
		return false
	}
}

func (s *service) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.run != nil
}

// now returns the state.
func (s *service) now() services.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// become changes the state and tells the watchers.
func (s *service) become(sub string, pid int, result string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = services.State{
		Active: cluster.TriOf(sub == services.SubRunning), Sub: sub, MainPID: pid, Since: time.Now(), Result: result,
	}
	s.sup.log.Info("unit", "unit", s.name, "sub", sub, "main_pid", pid, "result", result)
	s.sup.publish(services.Event{Unit: s.name, State: s.state})
}

// attempted answers the calls of start that wait.
func (s *service) attempted(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.waiters {
		w <- err
	}
	s.waiters = nil
}

// loop runs the unit, again and again as Restart= says, until it is stopped.
func (s *service) loop(r *run) {
	for {
		spec, result, err := s.life(r)
		s.attempted(err)
		if r.stopping() {
			if result == services.ResultTimeout && s.group.any() {
				r.err = fmt.Errorf("stop %s: %w: processes are left after the final signal", s.name, services.ErrFailed)
			}
			break
		}
		if !restarts(spec.Restart, result) {
			break
		}
		s.become(services.SubAutoRestart, 0, result)
		select {
		case <-time.After(spec.RestartSec):
		case <-r.kick:
		case <-r.stop:
		}
		if r.stopping() {
			s.become(services.SubDead, 0, result)
			break
		}
	}
	s.finish(r)
}

// finish ends a run. A start that came too late for it begins the next.
func (s *service) finish(r *run) {
	s.mu.Lock()
	s.run = nil
	late := s.waiters
	s.waiters = nil
	s.mu.Unlock()
	close(r.done)
	for _, w := range late {
		go func() { w <- s.start() }()
	}
}

// restarts says whether Restart= asks for another start after a run that ended
// by itself.
func restarts(restart, result string) bool {
	switch restart {
	case "always":
		return true
	case "on-failure":
		return result != services.ResultSuccess
	}
	return false
}

// life takes the unit from its first command to the death of its last process.
// The error says why it did not come to run; nil when it did.
func (s *service) life(r *run) (spec unitfile.Unit, result string, err error) {
	spec, err = unitfile.Load(s.sup.opts.Units, s.name)
	if err != nil {
		kind := services.ErrFailed
		if errors.Is(err, fs.ErrNotExist) {
			kind = services.ErrUnknownUnit
		}
		s.become(services.SubFailed, 0, services.ResultResources)
		return unitfile.Unit{}, services.ResultResources, fmt.Errorf("start %s: %w: %w", s.name, kind, err)
	}
	for _, c := range spec.Conditions {
		if !c.Holds() {
			s.sup.log.Info("condition does not hold", "unit", s.name, "path", c.Path, "not", c.Not)
			s.become(services.SubDead, 0, services.ResultSuccess)
			return unitfile.Unit{}, services.ResultSuccess, nil
		}
	}
	l, err := s.prepare(spec)
	if err != nil {
		s.become(services.SubFailed, 0, services.ResultResources)
		return spec, services.ResultResources, fmt.Errorf("start %s: %w: %w", s.name, services.ErrFailed, err)
	}
	defer l.output.Close()

	result, err = s.commands(r, spec, l, services.SubStartPre, spec.StartPre)
	if err == nil && result == services.ResultSuccess && !r.stopping() {
		result, err = s.main(r, spec, l)
	}
	if post, postErr := s.commands(nil, spec, l, services.SubStopPost, spec.StopPost); postErr != nil && result == services.ResultSuccess {
		result = post
	}
	sub := services.SubDead
	if result != services.ResultSuccess {
		sub = services.SubFailed
	}
	if r.stopping() || !restarts(spec.Restart, result) {
		s.become(sub, 0, result)
	}
	return spec, result, err
}

// prepare opens the log and looks up the user.
func (s *service) prepare(spec unitfile.Unit) (launch, error) {
	cred, env, err := identity(spec)
	if err != nil {
		return launch{}, err
	}
	file := filepath.Join(s.sup.opts.Logs, strings.TrimSuffix(s.name, ".service")+".log")
	output, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return launch{}, fmt.Errorf("open log: %w", err)
	}
	dir := spec.WorkingDirectory
	if dir == "" {
		dir = "/"
	}
	return launch{dir: dir, env: env, cred: cred, nofile: spec.LimitNOFILE, output: output}, nil
}

// commands runs ExecStartPre or ExecStopPost lines, one after the other, until
// one fails or, where r is given, the unit is stopped.
func (s *service) commands(r *run, spec unitfile.Unit, l launch, sub string, list []unitfile.Command) (string, error) {
	var stop chan struct{} // nil: never
	if r != nil {
		stop = r.stop
	}
	for _, command := range list {
		l.argv = command.Argv
		c, err := s.group.run(l)
		if err != nil {
			return services.ResultResources, fmt.Errorf("start %s: %w: %w", s.name, services.ErrFailed, err)
		}
		s.become(sub, 0, services.ResultSuccess)
		var status syscall.WaitStatus
		select {
		case status = <-c.died:
			s.group.dead(c)
			s.group.end(spec, false)
		case <-stop:
			return s.terminate(spec, c), fmt.Errorf("start %s: %w: it was stopped meanwhile", s.name, services.ErrFailed)
		case <-limit(spec.TimeoutStart):
			s.terminate(spec, c)
			return services.ResultTimeout, fmt.Errorf("start %s: %w: %s took longer than %s", s.name, services.ErrFailed, command.Argv[0], spec.TimeoutStart)
		}
		if result := ended(status); result != services.ResultSuccess && !command.IgnoreFailure {
			return result, fmt.Errorf("start %s: %w: %s: %s", s.name, services.ErrFailed, unitfile.Join(command.Argv), describe(status))
		}
	}
	return services.ResultSuccess, nil
}

// main runs the main process until it dies or is stopped.
func (s *service) main(r *run, spec unitfile.Unit, l launch) (string, error) {
	ready, err := s.listen(spec)
	if err != nil {
		return services.ResultResources, fmt.Errorf("start %s: %w: %w", s.name, services.ErrFailed, err)
	}
	defer ready.close()
	l.argv, l.env = spec.Start.Argv, append(l.env, ready.env()...)
	c, err := s.group.run(l)
	if err != nil {
		return services.ResultResources, fmt.Errorf("start %s: %w: %w", s.name, services.ErrFailed, err)
	}
	if spec.Type == "notify" {
		s.become(services.SubStart, c.pid, services.ResultSuccess)
		select {
		case <-ready.ready:
		case status := <-c.died:
			s.group.dead(c)
			s.group.end(spec, false)
			return ended(status), fmt.Errorf("start %s: %w: %s before it was ready", s.name, services.ErrFailed, describe(status))
		case <-r.stop:
			return s.terminate(spec, c), fmt.Errorf("start %s: %w: it was stopped meanwhile", s.name, services.ErrFailed)
		case <-limit(spec.TimeoutStart):
			s.terminate(spec, c)
			return services.ResultTimeout, fmt.Errorf("start %s: %w: not ready after %s", s.name, services.ErrFailed, spec.TimeoutStart)
		}
	}
	s.become(services.SubRunning, c.pid, services.ResultSuccess)
	s.attempted(nil)
	select {
	case <-r.stop:
		return s.terminate(spec, c), nil
	case status := <-c.died:
		result := ended(status)
		if spec.Start.IgnoreFailure {
			result = services.ResultSuccess
		}
		s.sup.log.Warn("unit ended", "unit", s.name, "main_pid", c.pid, "status", describe(status))
		s.group.dead(c)
		s.become(services.SubStop, 0, result)
		if !s.group.end(spec, false) {
			result = services.ResultTimeout
		}
		return result, nil
	}
}
