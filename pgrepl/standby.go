package pgrepl

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

func timelineOf(hex string) cluster.Timeline {
	n, _ := strconv.ParseUint(hex, 16, 32)
	return cluster.Timeline(n)
}

// Follow makes the standby receive from up, with a reload and no restart. It
// returns when the server has taken that up; whether it streams is for Observe.
// It also locks the quorum until the next SetQuorum. Without a server the
// configuration is written for its next start and the error wraps ErrNotRunning;
// on a server that is starting it is taken up, and the error wraps ErrStarting.
// On a primary nothing is done and the error is ErrNotStandby. A standby that
// has skipped timelines for a promotion that did not come is stopped, and the
// error wraps ErrNotRunning.
func (s *Server) Follow(ctx context.Context, up Upstream) error {
	if err := s.follow(ctx, up); err != nil {
		return fmt.Errorf("follow %s: %w", up, err)
	}
	return nil
}

func (s *Server) follow(ctx context.Context, up Upstream) error {
	var standby bool
	if err := s.row(ctx, "select pg_is_in_recovery()", nil, &standby); err == nil && !standby {
		return ErrNotStandby
	}
	changed, err := s.change(ctx, func(d *dynamic) { s.point(d, up) })
	if err := errors.Join(err, s.unskip(ctx)); err != nil {
		return err
	}
	return s.inEffect(ctx, changed)
}

func (s *Server) point(d *dynamic, up Upstream) {
	d.conninfo, d.slot, d.standbys = s.conninfo(up), SlotName(up.Tenure, s.NodeName), standbyNames(lockedQuorum)
}

// Detach stops the standby from receiving WAL and returns its final position:
// no receiver runs, none can start until the next Follow, not even after a
// restart of the server, and all that was received is flushed.
//
// The error wraps ErrNotRunning or ErrStarting when there is no server to tell
// the position; it will not receive once it is up. It wraps ErrNotStandby on a
// primary, which receives nothing.
func (s *Server) Detach(ctx context.Context) (cluster.Position, error) {
	p, err := s.detach(ctx)
	if err != nil {
		return cluster.Position{}, fmt.Errorf("detach: %w", err)
	}
	return p, nil
}

func (s *Server) detach(ctx context.Context) (cluster.Position, error) {
	changed, err := s.change(ctx, func(d *dynamic) { d.conninfo, d.slot = "", "" })
	if err != nil {
		return cluster.Position{}, err
	}
	if err := s.inEffect(ctx, changed); err != nil {
		return cluster.Position{}, err
	}
	return s.finalPosition(ctx)
}

// receiverSQL: is it a standby, which receiver runs, does the startup process wait because it has
// replayed everything there is, and how far was received. A receiver that is
// still connecting is not in pg_stat_wal_receiver, but its process is there.
const receiverSQL = `select pg_is_in_recovery(),
	coalesce((select pid from pg_stat_activity where backend_type = 'walreceiver' limit 1), 0),
	coalesce((select wait_event = 'RecoveryRetrieveRetryInterval' from pg_stat_activity where backend_type = 'startup'), false),
	coalesce(pg_last_wal_receive_lsn()::text, '')`

// settle is how long no receiver may be seen before the position counts as
// final while the startup process is still replaying.
const settle = 5 * time.Millisecond

// finalPosition waits until the position of a standby that was told not to
// receive can no longer change. The startup process alone starts receivers, and
// it has the signal to read the configuration by now.
//
// A receiver flushes what it has when it ends. It is ended from here, because
// the startup process does not get to that while the replay is held up. When the startup process is seen
// waiting for its next retry, it has replayed all there is and reads the
// configuration before anything else. While it replays, it reads it between two
// records; then the position is what was received, provided that it is on the
// timeline which is replayed: otherwise IDENTIFY_SYSTEM is short of it until the
// replay has got there.
func (s *Server) finalPosition(ctx context.Context) (cluster.Position, error) {
	var at cluster.Position
	var goneSince time.Time
	err := poll(ctx, pollEvery, func() (bool, error) {
		var standby, idle bool
		var receiver int
		var received string
		if err := s.row(ctx, receiverSQL, nil, &standby, &receiver, &idle, &received); err != nil {
			return false, err
		}
		switch {
		case !standby:
			return false, ErrNotStandby
		case receiver != 0:
			goneSince = time.Time{}
			return false, s.endReceiver(receiver)
		case goneSince.IsZero():
			goneSince = time.Now()
		}
		if !idle && (time.Since(goneSince) < settle || received == "") {
			return false, nil
		}
		id, err := s.identify(ctx)
		at = id.at
		return idle || at.LSN >= lsnOrZero(received), err
	})
	return at, err
}

// endReceiver ends a WAL receiver, which no SQL function can.
func (s *Server) endReceiver(pid int) error {
	if !s.isOurs(pid) {
		return nil // it has ended by itself
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && err != syscall.ESRCH {
		return fmt.Errorf("end WAL receiver %d: %w", pid, err)
	}
	return nil
}

// Promote makes the standby a primary and returns when recovery has ended, with
// the new timeline and the LSN at which it began. On a primary it only returns
// these. Checkpoint is to follow, and may take its time. Sessions that hold up
// the replay of what is left are ended.
func (s *Server) Promote(ctx context.Context) (cluster.Position, error) {
	p, err := s.promote(ctx)
	if err != nil {
		return p, fmt.Errorf("promote: %w", err)
	}
	return p, nil
}

// patience is how long the replay may be held up by a session.
const patience = 100 * time.Millisecond

const promoteSQL = `select case when pg_is_in_recovery() then (select pg_promote(wait => false))::text else 'done' end`

const blockedSQL = `select count(pg_terminate_backend(pid)) ` + clients + ` and
	exists (select from pg_stat_activity where backend_type = 'startup'
		and (wait_event like 'RecoveryConflict%' or wait_event_type in ('BufferPin', 'Lock')))`

func (s *Server) promote(ctx context.Context) (cluster.Position, error) {
	var asked string
	if err := s.row(ctx, promoteSQL, nil, &asked); err != nil {
		return cluster.Position{}, err
	}
	if asked == "false" {
		return cluster.Position{}, errors.New("the server did not accept the request")
	}
	began := time.Now()
	err := poll(ctx, pollEvery, func() (bool, error) {
		var standby bool
		if err := s.row(ctx, "select pg_is_in_recovery()", nil, &standby); err != nil || !standby {
			return true, err
		}
		if time.Since(began) > patience {
			began = time.Now()
			var n int
			if err := s.row(ctx, blockedSQL, nil, &n); err != nil {
				return false, err
			}
			if n > 0 {
				s.log.Warn("ended sessions that held up the promotion", "sessions", n)
			}
		}
		return false, nil
	})
	if err != nil {
		return cluster.Position{}, err
	}
	var timeline string
	if err := s.row(ctx, "select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)", nil, &timeline); err != nil {
		return cluster.Position{}, err
	}
	p := cluster.Position{Timeline: timelineOf(timeline)}
	history, err := s.History(ctx, p.Timeline)
	if err != nil {
		return p, err
	}
	if n := len(history); n > 0 {
		p.LSN = history[n-1].LSN
	}
	return p, nil
}

// Checkpoint takes a checkpoint at once, without spreading its writes. After a
// promotion it makes the new timeline known to those that rewind from here.
func (s *Server) Checkpoint(ctx context.Context) error {
	if err := s.sql(ctx, "checkpoint"); err != nil {
		return fmt.Errorf("take a checkpoint: %w", err)
	}
	return nil
}
