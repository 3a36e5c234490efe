package services

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/coreos/go-systemd/v22/login1"
)

// OnShutdown calls back with true when the host begins to go down, and holds that
// up until the call has returned, for as long as logind allows
// (InhibitDelayMaxSec, 5 s by default). It calls back with false when the host
// stays up after all. It returns when ctx ends, with ctx.Err(), or when a shutdown
// may be missed, with an error that wraps ErrUnreachable.
func (s *Systemd) OnShutdown(ctx context.Context, changed func(ctx context.Context, down bool)) error {
	conn, err := login1.New()
	if err != nil {
		return fmt.Errorf("connect to logind: %w: %w", ErrUnreachable, err)
	}
	defer conn.Close()
	signals := conn.Subscribe("PrepareForShutdown")
	lock, err := inhibit(conn)
	if err != nil {
		return err
	}
	defer func() { lock.Close() }()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for a shutdown: %w", ctx.Err())
		case signal, ok := <-signals:
			if !ok {
				return fmt.Errorf("wait for a shutdown: %w: the connection was lost", ErrUnreachable)
			}
			down, known := false, signal.Name == "org.freedesktop.login1.Manager.PrepareForShutdown" && len(signal.Body) > 0
			if known {
				down, known = signal.Body[0].(bool)
			}
			if !known {
				continue
			}
			changed(ctx, down)
			lock.Close()
			if !down {
				if lock, err = inhibit(conn); err != nil {
					return err
				}
			}
		}
	}
}

// inhibit takes the lock that delays a shutdown until it is closed.
func inhibit(conn *login1.Conn) (*os.File, error) {
	lock, err := conn.Inhibit("shutdown", "understudy", "the active node hands over first", "delay")
	if err != nil {
		return nil, fmt.Errorf("delay shutdowns: %w: %w", ErrUnreachable, err)
	}
	return lock, nil
}

// OnShutdown calls back when the node begins to go down, and holds that up until
// the call has returned, or for supervisor.FarewellMax. A shutdown of a dev node is
// never called off. It returns when ctx ends, with ctx.Err(), or when a shutdown
// may be missed, with an error that wraps ErrUnreachable.
func (e *Exec) OnShutdown(ctx context.Context, changed func(ctx context.Context, down bool)) error {
	conn, err := e.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := json.NewEncoder(conn).Encode(Request{Op: OpInhibit}); err != nil {
		return e.lost(ctx, err)
	}
	var going Response
	if err := json.NewDecoder(conn).Decode(&going); err != nil {
		return e.lost(ctx, err)
	}
	changed(ctx, true)
	_ = conn.Close() // the word that init waits for
	<-ctx.Done()
	return fmt.Errorf("wait for a shutdown: %w", ctx.Err())
}
