package services

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"syscall"
)

// Exec speaks to the init of a dev node over its unix socket. Each call is its
// own connection. A call that ends early, because its context ended, leaves the
// operation going on.
type Exec struct{ socket string }

// NewExec returns a client of the init that listens on the socket.
func NewExec(socket string) *Exec { return &Exec{socket: socket} }

// Start starts a unit and returns when it runs. A unit that already runs is left
// alone; one that waits to be restarted is started at once. The error wraps
// ErrUnknownUnit, ErrFailed or ErrUnreachable.
func (e *Exec) Start(ctx context.Context, unit string) error {
	_, err := e.call(ctx, Request{Op: OpStart, Unit: unit})
	return err
}

// Stop stops a unit and returns when no process of it is left. A unit that does
// not run is left alone. The error wraps ErrUnknownUnit, ErrFailed (processes
// are left even after FinalKillSignal) or ErrUnreachable.
func (e *Exec) Stop(ctx context.Context, unit string) error {
	_, err := e.call(ctx, Request{Op: OpStop, Unit: unit})
	return err
}

// Kill sends a signal to every process of a unit. It does not wait; what then
// happens is up to Restart=. A unit that has no process is left alone.
func (e *Exec) Kill(ctx context.Context, unit string, sig syscall.Signal) error {
	_, err := e.call(ctx, Request{Op: OpKill, Unit: unit, Signal: sig})
	return err
}

// State returns what is known of a unit. With an error it is unknown.
func (e *Exec) State(ctx context.Context, unit string) (State, error) {
	r, err := e.call(ctx, Request{Op: OpState, Unit: unit})
	return r.State, err
}

// States returns what is known of every unit that has a unit file.
func (e *Exec) States(ctx context.Context) (map[string]State, error) {
	r, err := e.call(ctx, Request{Op: OpStates})
	return r.States, err
}

// Enable has units started when the node boots. It does not start them now.
func (e *Exec) Enable(ctx context.Context, units ...string) error {
	return e.each(ctx, OpEnable, units)
}

// Disable undoes Enable. It does not stop the units.
func (e *Exec) Disable(ctx context.Context, units ...string) error {
	return e.each(ctx, OpDisable, units)
}

func (e *Exec) each(ctx context.Context, op Op, units []string) error {
	for _, unit := range units {
		if _, err := e.call(ctx, Request{Op: op, Unit: unit}); err != nil {
			return err
		}
	}
	return nil
}

// Reload reads all unit files again. A unit that runs goes on as it is until it
// is started the next time.
func (e *Exec) Reload(ctx context.Context) error {
	_, err := e.call(ctx, Request{Op: OpReload})
	return err
}

// Shutdown stops all units in order and then the init itself. It returns when
// all units are stopped.
func (e *Exec) Shutdown(ctx context.Context) error {
	_, err := e.call(ctx, Request{Op: OpShutdown})
	return err
}

// Watch calls back with the state of every unit that there is, and then with
// each change as it happens, none left out. It returns when ctx ends, with
// ctx.Err(), or when the init is gone, with an error that wraps ErrUnreachable.
func (e *Exec) Watch(ctx context.Context, changed func(unit string, s State)) error {
	conn, err := e.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := json.NewEncoder(conn).Encode(Request{Op: OpWatch}); err != nil {
		return e.lost(ctx, err)
	}
	lines := json.NewDecoder(bufio.NewReader(conn))
	for {
		var event Event
		if err := lines.Decode(&event); err != nil {
			return e.lost(ctx, err)
		}
		changed(event.Unit, event.State)
	}
}

func (e *Exec) dial(ctx context.Context) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", e.socket)
	if err != nil {
		return nil, e.lost(ctx, err)
	}
	return conn, nil
}

func (e *Exec) call(ctx context.Context, request Request) (Response, error) {
	if request.Unit != "" {
		request.Unit = UnitName(request.Unit)
	}
	conn, err := e.dial(ctx)
	if err != nil {
		return Response{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := json.NewEncoder(conn).Encode(request); err != nil {
		return Response{}, e.lost(ctx, err)
	}
	var r Response
	if err := json.NewDecoder(conn).Decode(&r); err != nil {
		return Response{}, e.lost(ctx, err)
	}
	return r, r.err()
}

func (e *Exec) lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("call init at %s: %w", e.socket, ctx.Err())
	}
	return fmt.Errorf("call init at %s: %w: %w", e.socket, ErrUnreachable, err)
}

// err turns an answer into the error that it carries.
func (r Response) err() error {
	switch r.Code {
	case CodeOK:
		return nil
	case CodeUnknown:
		return coded{ErrUnknownUnit, r.Error}
	case CodeFailed:
		return coded{ErrFailed, r.Error}
	}
	return errors.New(r.Error)
}

// coded is an error whose text has come over the socket and whose kind is known.
type coded struct {
	kind error
	text string
}

func (c coded) Error() string { return c.text }
func (c coded) Unwrap() error { return c.kind }
