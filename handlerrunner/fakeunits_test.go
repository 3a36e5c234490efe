package handlerrunner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

var _ Units = (*fakeUnits)(nil)

// fakeUnits are PostgreSQL and the manager's own units.
type fakeUnits struct {
	h     *host
	up    map[string]bool
	stuck map[string]bool          // can be neither started nor stopped
	flaps map[string]bool          // runs for 0.4 s whenever it is started
	drags time.Duration            // how much longer a start takes, for which somebody waits
	slow  map[string]time.Duration // starts last so long, whether anybody waits or not
	began map[string]bool          // such a start is under way
}

func (u *fakeUnits) set(unit string, run bool) {
	switch {
	case unit == pgUnit && run:
		u.h.pg.start()
	case unit == pgUnit:
		u.h.pg.stop(true)
	default:
		u.up[unit] = run
		u.h.w.note(u.h.name, "%s %s", map[bool]string{true: "starts", false: "stops"}[run], unit)
	}
}

func (u *fakeUnits) Start(ctx context.Context, unit string) error {
	if err := u.h.pause(ctx, 20*time.Millisecond+u.drags); err != nil {
		return err
	}
	u.h.w.mu.Lock()
	defer u.h.w.mu.Unlock()
	switch {
	case u.stuck[unit], unit == pgUnit && !u.h.pg.complete:
		return fmt.Errorf("unit %s has failed", unit)
	case u.run(unit):
		return nil
	case u.slow[unit] > 0:
		return u.startSlowly(ctx, unit)
	}
	u.set(unit, true)
	if u.flaps[unit] {
		time.AfterFunc(400*time.Millisecond, func() {
			u.h.w.mu.Lock()
			defer u.h.w.mu.Unlock()
			u.up[unit] = false
		})
	}
	return nil
}

// startSlowly begins a start, unless one is under way, and waits for it as long as ctx
// lasts. The caller holds the world's lock.
func (u *fakeUnits) startSlowly(ctx context.Context, unit string) error {
	if !u.began[unit] {
		u.began[unit] = true
		time.AfterFunc(u.slow[unit], func() {
			u.h.w.mu.Lock()
			defer u.h.w.mu.Unlock()
			u.began[unit] = false
			u.set(unit, true)
		})
	}
	u.h.w.mu.Unlock()
	<-ctx.Done()
	u.h.w.mu.Lock()
	return ctx.Err()
}

func (u *fakeUnits) Stop(ctx context.Context, unit string) error {
	if err := u.h.pause(ctx, 10*time.Millisecond); err != nil {
		return err
	}
	u.h.w.mu.Lock()
	hangs := unit == pgUnit && u.h.pg.running && u.h.pg.hangs
	if u.stuck[unit] && u.run(unit) {
		u.h.w.mu.Unlock()
		return fmt.Errorf("unit %s does not stop", unit)
	}
	if !hangs && u.run(unit) {
		u.set(unit, false)
	}
	u.h.w.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (u *fakeUnits) Kill(ctx context.Context, unit string) error {
	if err := u.h.pause(ctx, time.Millisecond); err != nil {
		return err
	}
	u.h.w.mu.Lock()
	defer u.h.w.mu.Unlock()
	if u.stuck[unit] {
		return fmt.Errorf("unit %s cannot be killed", unit)
	}
	if unit == pgUnit {
		u.h.pg.stop(false)
	}
	return nil
}

// run says whether a unit runs, under the world's lock.
func (u *fakeUnits) run(unit string) bool {
	if unit == pgUnit {
		return u.h.pg.running
	}
	return u.up[unit]
}

func (u *fakeUnits) Running(_ context.Context, unit string) (cluster.Tri, error) {
	u.h.w.mu.Lock()
	defer u.h.w.mu.Unlock()
	if u.h.dead {
		return cluster.Unknown, errors.New("systemd does not answer")
	}
	if u.began[unit] {
		return cluster.Unknown, nil
	}
	return cluster.TriOf(u.run(unit)), nil
}
