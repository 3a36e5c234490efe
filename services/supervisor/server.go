package supervisor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/services"
)

// serve answers calls until the node is to go down.
func (s *Supervisor) serve(ctx context.Context) error {
	if err := os.Remove(s.opts.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("listen at %s: %w", s.opts.Socket, err)
	}
	listener, err := net.Listen("unix", s.opts.Socket)
	if err != nil {
		return fmt.Errorf("listen at %s: %w", s.opts.Socket, err)
	}
	if err := os.Chmod(s.opts.Socket, 0o600); err != nil {
		return fmt.Errorf("listen at %s: %w", s.opts.Socket, err)
	}
	down := make(chan struct{})
	var once sync.Once
	goDown := func() { s.shutdown(); once.Do(func() { close(down) }) }

	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go s.answer(conn, goDown)
		}
	}()
	s.log.Info("init is up", "pid", os.Getpid())
	go s.boot()
	select {
	case <-ctx.Done():
		goDown()
	case <-down:
	}
	s.log.Info("init is down")
	return listener.Close()
}

func (s *Supervisor) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

func (s *Supervisor) answer(conn net.Conn, goDown func()) {
	defer conn.Close()
	var request services.Request
	if err := json.NewDecoder(conn).Decode(&request); err != nil {
		return
	}
	if request.Op == services.OpWatch {
		s.stream(conn)
		return
	}
	if request.Op == services.OpInhibit {
		s.inhibit(conn)
		return
	}
	var response services.Response
	if request.Op == services.OpShutdown {
		s.shutdown()
		_ = json.NewEncoder(conn).Encode(response)
		goDown()
		return
	}
	if err := s.do(request, &response); err != nil {
		response.Error, response.Code = err.Error(), code(err)
	}
	_ = json.NewEncoder(conn).Encode(response)
}

func code(err error) services.Code {
	switch {
	case errors.Is(err, services.ErrUnknownUnit):
		return services.CodeUnknown
	case errors.Is(err, services.ErrFailed):
		return services.CodeFailed
	}
	return services.CodeOther
}

func (s *Supervisor) do(request services.Request, response *services.Response) error {
	switch request.Op {
	case services.OpReload:
		return s.check()
	case services.OpStates:
		names, err := s.files()
		response.States = make(map[string]services.State, len(names))
		for _, name := range names {
			response.States[name] = s.service(name).now()
		}
		return err
	}
	if _, err := os.Stat(filepath.Join(s.opts.Units, request.Unit)); err != nil || request.Unit != filepath.Base(request.Unit) {
		response.State = services.State{Active: cluster.No, Sub: "not-found"}
		return fmt.Errorf("%s %s: %w", request.Op, request.Unit, services.ErrUnknownUnit)
	}
	svc := s.service(request.Unit)
	var err error
	switch request.Op {
	case services.OpStart:
		err = svc.start()
	case services.OpStop:
		err = svc.stop()
	case services.OpKill:
		svc.group.signal(request.Signal)
	case services.OpState:
	case services.OpEnable:
		err = Enable(s.opts.Units, request.Unit)
	case services.OpDisable:
		err = Disable(s.opts.Units, request.Unit)
	default:
		err = fmt.Errorf("unknown operation %q", request.Op)
	}
	response.State = svc.now()
	return err
}

// watcher is a subscriber. Its queue holds what it has not read yet; one that
// does not read at all is dropped.
type watcher struct {
	queue chan services.Event
}

const watcherQueue = 1024

// publish must not block: it is called under the lock of a service.
func (s *Supervisor) publish(e services.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watchers {
		select {
		case w.queue <- e:
		default:
			delete(s.watchers, w)
			close(w.queue)
		}
	}
}

func (s *Supervisor) stream(conn net.Conn) {
	names, err := s.files()
	if err != nil {
		return
	}
	w := &watcher{queue: make(chan services.Event, watcherQueue)}
	s.mu.Lock()
	s.watchers[w] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watchers, w)
		s.mu.Unlock()
	}()
	// A client that hangs up is noticed although nothing is written to it.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = bufio.NewReader(conn).ReadByte()
		cancel()
	}()
	out := json.NewEncoder(conn)
	for _, name := range names {
		if out.Encode(services.Event{Unit: name, State: s.service(name).now()}) != nil {
			return
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-w.queue:
			if !ok || out.Encode(e) != nil {
				return
			}
		}
	}
}
