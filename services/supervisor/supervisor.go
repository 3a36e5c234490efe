// Package supervisor is the init of a dev node: it runs the node's units as
// systemd would run them on a host, from the same unit files.
//
// Guard is the outer process. It starts the init, and when that dies, however
// it dies, ends everything that is left of the node. Run is the init itself.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/understudy-ha/understudy/services"
	"github.com/understudy-ha/understudy/services/unitfile"
)

// Options say what an init runs and where.
type Options struct {
	Units  string // folder of unit files, and of multi-user.target.wants
	Logs   string // each unit's output goes to UNIT.log here
	Socket string // where services.Exec calls
	Notify string // folder for the sockets of Type=notify
	Logger *slog.Logger
}

// wants is the folder of links to the units that are started at boot.
const wants = "multi-user.target.wants"

// Supervisor runs the units of one node. Of its locks and those of a service,
// the service's is taken first.
type Supervisor struct {
	opts      Options
	log       *slog.Logger
	processes *processes
	adopting  sync.Mutex // one unit at a time claims orphans

	farewells sync.Once

	mu         sync.Mutex
	services   map[string]*service
	watchers   map[*watcher]struct{}
	inhibitors map[*inhibitor]struct{}
	closing    bool
}

// Run starts the enabled units, serves the socket and returns when it was told
// to shut down, or when ctx ends, after all units are stopped. It must be the only thing
// in its process that starts or waits for processes.
func Run(ctx context.Context, opts Options) error {
	// Orphans become children of this process, so that nothing of a unit
	// gets out of reach.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of orphans: %w", err)
	}
	// Units get what systemd gives them, whatever this process was started
	// with: "nohup" and a shell's "&" hand down ignored signals, a handler is not
	// handed down.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT)
	syscall.Umask(0o022)
	for _, dir := range []string{opts.Logs, opts.Notify, filepath.Dir(opts.Socket), filepath.Join(opts.Units, wants)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("prepare init: %w", err)
		}
	}
	s := &Supervisor{
		opts: opts, log: opts.Logger, processes: newProcesses(),
		services: make(map[string]*service), watchers: make(map[*watcher]struct{}), inhibitors: make(map[*inhibitor]struct{}),
	}
	return s.serve(ctx)
}

// boot starts what is enabled, in the order of After=. A unit that fails is
// logged; its Restart= says what becomes of it.
func (s *Supervisor) boot() {
	enabled, err := s.enabled()
	if err != nil {
		s.log.Error("boot", "error", err)
	}
	for _, wave := range waves(s.load(enabled)) {
		s.each(wave, func(svc *service) {
			if err := svc.start(); err != nil {
				s.log.Error("start unit at boot", "unit", svc.name, "error", err)
			}
		})
	}
}

// shutdown says farewell, and stops all units in the reverse order. Nothing is
// started any more.
func (s *Supervisor) shutdown() {
	s.farewells.Do(s.farewell)
	s.mu.Lock()
	s.closing = true
	all := slices.Collect(maps.Values(s.services))
	s.mu.Unlock()
	var running []string
	for _, svc := range all {
		if svc.busy() {
			running = append(running, svc.name)
		}
	}
	order := waves(s.load(running))
	slices.Reverse(order)
	for _, wave := range order {
		s.each(wave, func(svc *service) {
			if err := svc.stop(); err != nil {
				s.log.Error("stop unit at shutdown", "unit", svc.name, "error", err)
			}
		})
	}
}

// each does the same with several units at once and waits for all.
func (s *Supervisor) each(names []string, do func(*service)) {
	var wg sync.WaitGroup
	for _, name := range names {
		wg.Go(func() { do(s.service(name)) })
	}
	wg.Wait()
}

// service returns the unit of that name; whether it has a file shows when it is
// started.
func (s *Supervisor) service(name string) *service {
	s.mu.Lock()
	defer s.mu.Unlock()
	svc := s.services[name]
	if svc == nil {
		svc = newService(s, name)
		s.services[name] = svc
	}
	return svc
}

// load reads units; one that cannot be read is taken as having no order.
func (s *Supervisor) load(names []string) []unitfile.Unit {
	units := make([]unitfile.Unit, len(names))
	for i, name := range names {
		u, err := unitfile.Load(s.opts.Units, name)
		if err != nil {
			s.log.Warn("read unit", "unit", name, "error", err)
			u = unitfile.Unit{Name: name}
		}
		units[i] = u
	}
	return units
}

// waves orders units by After=: each wave may be started when the one before it
// runs. What goes round in a circle is in the last wave.
func waves(units []unitfile.Unit) [][]string {
	left := make(map[string][]string, len(units))
	for _, u := range units {
		left[u.Name] = u.After
	}
	var order [][]string
	for len(left) > 0 {
		var wave []string
		for name, after := range left {
			waits := slices.ContainsFunc(after, func(a string) bool { _, ok := left[a]; return ok && a != name })
			if !waits {
				wave = append(wave, name)
			}
		}
		if len(wave) == 0 {
			for name := range left {
				wave = append(wave, name)
			}
		}
		slices.Sort(wave)
		for _, name := range wave {
			delete(left, name)
		}
		order = append(order, wave)
	}
	return order
}

// files returns the names of all units that have a unit file.
func (s *Supervisor) files() ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(s.opts.Units, "*.service"))
	if err != nil {
		return nil, fmt.Errorf("list units: %w", err)
	}
	for i := range paths {
		paths[i] = filepath.Base(paths[i])
	}
	return paths, nil
}

func (s *Supervisor) enabled() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.opts.Units, wants))
	if err != nil {
		return nil, fmt.Errorf("list enabled units: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".service") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Enable has a unit of this folder of unit files started at boot. It can be used
// while no init runs. The error wraps services.ErrUnknownUnit when the unit has
// no file.
func Enable(units, name string) error {
	u, err := unitfile.Load(units, name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("enable %s: %w", name, services.ErrUnknownUnit)
	}
	if err != nil {
		return fmt.Errorf("enable %s: %w", name, err)
	}
	if !slices.Contains(u.WantedBy, "multi-user.target") {
		return fmt.Errorf("enable %s: its [Install] section does not say WantedBy=multi-user.target", name)
	}
	link := filepath.Join(units, wants, name)
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return fmt.Errorf("enable %s: %w", name, err)
	}
	if err := os.Symlink(filepath.Join("..", name), link); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("enable %s: %w", name, err)
	}
	return nil
}

// Disable undoes Enable.
func Disable(units, name string) error {
	err := os.Remove(filepath.Join(units, wants, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("disable %s: %w", name, err)
	}
	return nil
}

// check reads all unit files and returns every error in them.
func (s *Supervisor) check() error {
	names, err := s.files()
	if err != nil {
		return err
	}
	var bad []error
	for _, name := range names {
		if _, err := unitfile.Load(s.opts.Units, name); err != nil {
			bad = append(bad, err)
		}
	}
	return errors.Join(bad...)
}
