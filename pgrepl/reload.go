package pgrepl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// readDynamic returns the dynamic configuration in the file.
func (s *Server) readDynamic() (dynamic, error) {
	text, err := os.ReadFile(s.dynamicFile())
	if err != nil {
		return dynamic{}, fmt.Errorf("read dynamic configuration: %w", err)
	}
	return parseDynamic(string(text)), nil
}

// pending is a change of the configuration that was ordered. The zero value is one
// that is in effect already.
type pending struct {
	generation int
	synced     <-chan error // gets the answer of the disk
}

// change writes the dynamic configuration and tells the server to read it. Until
// inEffect has returned it may not have. When there is no server the file is
// written all the same and the error wraps ErrNotRunning.
//
// What a server has in effect already is not read again: in an election every
// standby is told the same by all others, while writes wait.
func (s *Server) change(ctx context.Context, edit func(*dynamic)) (pending, error) {
	if s.has(edit) && s.sql(ctx, "select") == nil {
		return pending{}, nil
	}
	generation, sync, err := s.edit(edit)
	if err != nil {
		return pending{}, err
	}
	// The disk may be slow at the moment in which it matters most, and the
	// server reads the file from memory.
	synced := make(chan error, 1)
	go func() { synced <- sync() }()
	if err := s.reload(ctx); err != nil {
		return pending{}, errors.Join(err, <-synced)
	}
	return pending{generation, synced}, nil
}

// has says that an edit would change nothing of what was seen in effect.
func (s *Server) has(edit func(*dynamic)) bool {
	s.conf.Lock()
	defer s.conf.Unlock()
	d, err := s.readDynamic()
	after := d
	edit(&after)
	return err == nil && after == d && d.generation == s.taken && s.checkOverridden() == nil
}

func (s *Server) edit(edit func(*dynamic)) (generation int, sync func() error, err error) {
	s.conf.Lock()
	defer s.conf.Unlock()
	if err := s.checkOverridden(); err != nil {
		return 0, nil, err
	}
	d, err := s.readDynamic()
	if err != nil {
		return 0, nil, err
	}
	d.generation++
	edit(&d)
	sync, err = s.replaceFile(s.dynamicFile(), d.text(), 0o640)
	return d.generation, sync, err
}

// inEffect waits until the postmaster has read the changed configuration, and
// with it the rules of admission, and until the file is durable. A session that
// begins after the postmaster has read it shows its generation, and by then every
// process of the server has been told.
func (s *Server) inEffect(ctx context.Context, p pending) error {
	if p == (pending{}) {
		return nil
	}
	err := poll(ctx, pollEvery, func() (bool, error) {
		c, err := s.connect(ctx)
		if err != nil {
			return false, err
		}
		defer discard(c)
		var got string
		if err := c.QueryRow(ctx, "select coalesce(current_setting($1, true), '')", generationSetting).Scan(&got); err != nil {
			return false, err
		}
		n, _ := strconv.Atoi(got)
		return n >= p.generation, nil
	})
	if err != nil {
		return err
	}
	select {
	case err := <-p.synced:
		if err == nil {
			s.conf.Lock()
			s.taken = max(s.taken, p.generation)
			s.conf.Unlock()
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reload tells the server to read its configuration: over a connection, and by
// signal where none can be made. It does not wait until that has happened.
func (s *Server) reload(ctx context.Context) error {
	err := s.sql(ctx, "select pg_reload_conf()")
	if err == nil {
		return nil
	}
	pid := s.postmaster()
	if pid == 0 {
		return fmt.Errorf("reload configuration: %w", ErrNotRunning)
	}
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		return fmt.Errorf("reload configuration: signal postmaster %d: %w", pid, err)
	}
	return nil
}

// postmaster returns the PID of the server on the data directory, and 0 when
// there is none. A PID in the file may belong to another process by now.
func (s *Server) postmaster() int {
	text, err := os.ReadFile(filepath.Join(s.DataDir, "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 0 || !s.isOurs(pid) {
		return 0
	}
	return pid
}

// isOurs tells a process of the server by its working directory, which is the
// data directory.
func (s *Server) isOurs(pid int) bool {
	cwd, err1 := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	dir, err2 := os.Stat(s.DataDir)
	return err1 == nil && err2 == nil && os.SameFile(cwd, dir)
}

// pollEvery is the pause between two looks at something that takes a few
// milliseconds and that writes wait for.
const pollEvery = 2 * time.Millisecond

// poll calls f until it says true or fails, or the context ends.
func poll(ctx context.Context, every time.Duration, f func() (bool, error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		done, err := f()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// checkOverridden refuses to go on when postgresql.auto.conf has a setting of
// ours: it wins over every configuration file.
func (s *Server) checkOverridden() error {
	text, err := os.ReadFile(filepath.Join(s.DataDir, "postgresql.auto.conf"))
	if err != nil {
		return nil // no data directory yet
	}
	if name := overriddenIn(string(text)); name != "" {
		return fmt.Errorf("%w: %s in %s/postgresql.auto.conf; run ALTER SYSTEM RESET %s, or delete the line while the server is stopped",
			ErrOverridden, name, s.DataDir, name)
	}
	return nil
}

func overriddenIn(autoConf string) string {
	for line := range strings.Lines(autoConf) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), "=")
		name = strings.ToLower(strings.TrimSpace(name))
		if slices.Contains(ownNames(), name) {
			return name
		}
	}
	return ""
}
