package supervisor_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/services"
)

// Whoever asked is told of a shutdown before anything is stopped, and the shutdown
// waits for that, whether it was asked for or SIGTERM began it.
func TestFarewell(t *testing.T) {
	for name, down := range map[string]func(*node) error{
		"asked for": func(n *node) error { return n.Shutdown(context.Background()) },
		"SIGTERM":   func(n *node) error { return n.guard.Process.Signal(syscall.SIGTERM) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, map[string]string{"a.service": sleeper, "b.service": sleeper})
			n.start("a")
			ctx, cancel := context.WithCancel(t.Context())
			told, ended := make(chan struct{}), make(chan error)
			go func() {
				ended <- n.OnShutdown(ctx, func(ctx context.Context, going bool) {
					if !going || n.state("a").Active != cluster.Yes {
						t.Errorf("going down: %v, a: %+v", going, n.state("a"))
					}
					if err := n.Start(ctx, "b"); err != nil {
						t.Errorf("nothing can be started before the shutdown: %v", err)
					}
					close(told)
				})
			}()
			n.logged("a shutdown will be told beforehand")
			if err := down(n); err != nil {
				t.Fatal(err)
			}
			n.wait()
			select {
			case <-told:
			default:
				t.Error("it was not told")
			}
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("OnShutdown returns %v", err)
			}
		})
	}
}

// One that has asked and hung up holds up nothing; a node that dies unasked is an
// error, not a shutdown.
func TestFarewellWithoutAnybody(t *testing.T) {
	n := newNode(t, map[string]string{"a.service": sleeper})
	conn, err := net.Dial("unix", filepath.Join(n.dir, "run/init.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte(`{"op":"inhibit"}` + "\n")); err != nil {
		t.Fatal(err)
	}
	n.logged("a shutdown will be told beforehand")
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.wait()

	n = newNode(t, map[string]string{"a.service": sleeper})
	ended := make(chan error)
	go func() {
		ended <- n.OnShutdown(t.Context(), func(context.Context, bool) { t.Error("a death was told as a shutdown") })
	}()
	n.logged("a shutdown will be told beforehand")
	n.end()
	if err := <-ended; !errors.Is(err, services.ErrUnreachable) {
		t.Errorf("OnShutdown returns %v", err)
	}
}
