package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Dial connects to a machine as a client beside the machines does, from the address of
// the gateway. The address is an IP with a port.
func (l *Lab) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	type dialled struct {
		conn net.Conn
		err  error
	}
	done := make(chan dialled, 1)
	go func() {
		// A socket belongs to the network that its thread is in when it is made. The
		// thread is not unlocked, so that it ends with this goroutine.
		runtime.LockOSThread()
		conn, err := l.dialHere(ctx, network, address)
		done <- dialled{conn, err}
	}()
	d := <-done
	return d.conn, d.err
}

func (l *Lab) dialHere(ctx context.Context, network, address string) (net.Conn, error) {
	ns, err := os.Open(filepath.Join("/proc", strconv.Itoa(l.init), "ns/net"))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("dial %s: enter the lab's network: %w", address, err)
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}
