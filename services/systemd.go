package services

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"github.com/understudy-ha/understudy/cluster"
)

// Systemd speaks to systemd over the system's D-Bus, without sudo or systemctl;
// polkit rules say which units this user may start and stop. The connection is
// made when it is needed, and again when it was lost.
type Systemd struct {
	mu   sync.Mutex
	conn *dbus.Conn
}

// NewSystemd returns a client of this host's systemd.
func NewSystemd() *Systemd { return &Systemd{} }

// Close gives the connection back.
func (s *Systemd) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

func (s *Systemd) connect() (*dbus.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil && s.conn.Connected() {
		return s.conn, nil
	}
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
	// The context of a connection ends the connection, so that it must not
	// be that of a call.
	conn, err := dbus.NewSystemConnectionContext(context.Background())
	if err != nil {
		return nil, fmt.Errorf("connect to systemd: %w: %w", ErrUnreachable, err)
	}
	s.conn = conn
	return conn, nil
}

// Start starts a unit and returns when it runs, in the sense of its Type=. A
// unit that already runs is left alone; one that waits to be restarted is started
// at once. The error wraps ErrUnknownUnit, ErrFailed or ErrUnreachable.
func (s *Systemd) Start(ctx context.Context, unit string) error {
	return s.job(ctx, "start", unit, (*dbus.Conn).StartUnitContext)
}

// Stop stops a unit and returns when no main process of it is left. A unit that
// does not run is left alone. The error wraps ErrUnknownUnit, ErrFailed or
// ErrUnreachable.
func (s *Systemd) Stop(ctx context.Context, unit string) error {
	if err := s.job(ctx, "stop", unit, (*dbus.Conn).StopUnitContext); err != nil {
		return err
	}
	// A job that ends because systemd has given up ends like any other.
	state, err := s.State(ctx, unit)
	if err != nil {
		return err
	}
	return stopped(unit, state)
}

// stopped judges the state of a unit whose stop job has ended.
func stopped(unit string, state State) error {
	if state.MainPID != 0 || state.Active != cluster.No {
		return fmt.Errorf("stop %s: %w: it is %s, main process %d", unit, ErrFailed, state.Sub, state.MainPID)
	}
	return nil
}

type startJob func(c *dbus.Conn, ctx context.Context, name, mode string, done chan<- string) (int, error)

// job queues a job and waits for its end. When ctx ends the job goes on.
func (s *Systemd) job(ctx context.Context, what, unit string, start startJob) error {
	unit = UnitName(unit)
	conn, err := s.connect()
	if err != nil {
		return err
	}
	done := make(chan string, 1)
	if _, err := start(conn, ctx, unit, "replace", done); err != nil {
		return callError(what, unit, err)
	}
	select {
	case result := <-done:
		return jobError(what, unit, result)
	case <-ctx.Done():
		return fmt.Errorf("%s %s: %w", what, unit, ctx.Err())
	}
}

// jobError is the error of a job that has ended. The results are those that
// org.freedesktop.systemd1(5) lists for JobRemoved.
func jobError(what, unit, result string) error {
	switch result {
	case "done", "skipped":
		return nil
	case "canceled":
		return fmt.Errorf("%s %s: %w: another job took the place of this one", what, unit, ErrFailed)
	case "timeout":
		return fmt.Errorf("%s %s: %w: it took too long", what, unit, ErrFailed)
	case "dependency":
		return fmt.Errorf("%s %s: %w: a unit that it needs failed", what, unit, ErrFailed)
	case "failed":
		return fmt.Errorf("%s %s: %w; 'journalctl -u %s' tells why", what, unit, ErrFailed, unit)
	}
	return fmt.Errorf("%s %s: %w: job result %s", what, unit, ErrFailed, result)
}

// callError sorts the errors of D-Bus calls.
func callError(what, unit string, err error) error {
	var d godbus.Error
	switch {
	case errors.As(err, &d) && (d.Name == "org.freedesktop.systemd1.NoSuchUnit" || d.Name == "org.freedesktop.systemd1.LoadFailed"):
		return fmt.Errorf("%s %s: %w: %s", what, unit, ErrUnknownUnit, d)
	case errors.As(err, &d):
		return fmt.Errorf("%s %s: %w", what, unit, err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s %s: %w", what, unit, err)
	}
	return fmt.Errorf("%s %s: %w: %w", what, unit, ErrUnreachable, err)
}

// Kill sends a signal to every process of a unit. It does not wait; what then
// happens is up to Restart=. A unit that has no process is left alone.
func (s *Systemd) Kill(ctx context.Context, unit string, sig syscall.Signal) error {
	unit = UnitName(unit)
	conn, err := s.connect()
	if err != nil {
		return err
	}
	err = conn.KillUnitWithTarget(ctx, unit, dbus.All, int32(sig))
	var d godbus.Error
	if err == nil || errors.As(err, &d) && d.Name == "org.freedesktop.systemd1.NoSuchProcess" {
		return nil
	}
	return callError("kill", unit, err)
}

// State returns what is known of a unit. With an error it is unknown.
func (s *Systemd) State(ctx context.Context, unit string) (State, error) {
	unit = UnitName(unit)
	conn, err := s.connect()
	if err != nil {
		return State{}, err
	}
	properties, err := conn.GetAllPropertiesContext(ctx, unit)
	if err != nil {
		return State{}, callError("observe", unit, err)
	}
	return stateOf(unit, properties)
}

// stateOf reads the properties of a unit. A property that is missing, or of
// another type, leaves its field at zero: unknown.
func stateOf(unit string, properties map[string]any) (State, error) {
	load, _ := properties["LoadState"].(string)
	if load == "not-found" {
		return State{Active: cluster.No, Sub: load}, fmt.Errorf("observe %s: %w", unit, ErrUnknownUnit)
	}
	var s State
	switch active, _ := properties["ActiveState"].(string); active {
	case "active", "reloading", "refreshing":
		s.Active = cluster.Yes
	case "inactive", "failed", "activating", "deactivating", "maintenance":
		s.Active = cluster.No
	}
	s.Sub, _ = properties["SubState"].(string)
	s.Result, _ = properties["Result"].(string)
	if pid, ok := properties["MainPID"].(uint32); ok {
		s.MainPID = int(pid)
	}
	if since, ok := properties["StateChangeTimestamp"].(uint64); ok && since > 0 {
		s.Since = time.UnixMicro(int64(since))
	}
	return s, nil
}

// Enable has units started when the host boots. It does not start them now.
func (s *Systemd) Enable(ctx context.Context, units ...string) error {
	conn, err := s.connect()
	if err != nil {
		return err
	}
	names := unitNames(units)
	if _, _, err := conn.EnableUnitFilesContext(ctx, names, false, true); err != nil {
		return callError("enable", strings.Join(names, ", "), err)
	}
	return s.Reload(ctx)
}

// Disable undoes Enable. It does not stop the units.
func (s *Systemd) Disable(ctx context.Context, units ...string) error {
	conn, err := s.connect()
	if err != nil {
		return err
	}
	names := unitNames(units)
	if _, err := conn.DisableUnitFilesContext(ctx, names, false); err != nil {
		return callError("disable", strings.Join(names, ", "), err)
	}
	return s.Reload(ctx)
}

// Reload has systemd read all unit files again.
func (s *Systemd) Reload(ctx context.Context) error {
	conn, err := s.connect()
	if err != nil {
		return err
	}
	if err := conn.ReloadContext(ctx); err != nil {
		return callError("reload", "unit files", err)
	}
	return nil
}

func unitNames(names []string) []string {
	full := make([]string, len(names))
	for i, name := range names {
		full[i] = UnitName(name)
	}
	return full
}

// watchCheck is how often a watch looks whether its connection still lives.
const watchCheck = time.Second

// Watch calls back with the state of every service that is loaded, and then with
// each change. Changes that follow each other at once may be told as one. It
// returns when ctx ends, with ctx.Err(), or when changes may have been missed, with
// an error that wraps ErrUnreachable.
func (s *Systemd) Watch(ctx context.Context, changed func(unit string, s State)) error {
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("watch units: %w: %w", ErrUnreachable, err)
	}
	defer conn.Close()
	updates, missed := make(chan *dbus.PropertiesUpdate, 256), make(chan error, 1)
	conn.SetPropertiesSubscriber(updates, missed)
	if err := conn.Subscribe(); err != nil {
		return fmt.Errorf("watch units: %w: %w", ErrUnreachable, err)
	}
	tell := func(unit string) {
		if properties, err := conn.GetAllPropertiesContext(ctx, unit); err == nil {
			if state, err := stateOf(unit, properties); err == nil {
				changed(unit, state)
			}
		}
	}
	loaded, err := conn.ListUnitsByPatternsContext(ctx, nil, []string{"*.service"})
	if err != nil {
		return callError("list", "units", err)
	}
	for _, u := range loaded {
		tell(u.Name)
	}
	check := time.NewTicker(watchCheck)
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("watch units: %w", ctx.Err())
		case err := <-missed:
			return fmt.Errorf("watch units: %w: %w", ErrUnreachable, err)
		case <-check.C:
			if !conn.Connected() {
				return fmt.Errorf("watch units: %w: the connection was lost", ErrUnreachable)
			}
		case u := <-updates:
			if strings.HasSuffix(u.UnitName, ".service") && matters(u.Changed) {
				tell(u.UnitName)
			}
		}
	}
}

// matters says whether a change is one of State.
func matters(changed map[string]godbus.Variant) bool {
	for _, name := range []string{"ActiveState", "SubState", "MainPID", "Result"} {
		if _, ok := changed[name]; ok {
			return true
		}
	}
	return false
}
