package supervisor

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/understudy-ha/understudy/services/unitfile"
)

// readiness is the socket on which a unit of Type=notify says that it is ready.
// For other types it is nothing.
type readiness struct {
	conn  *net.UnixConn
	ready chan struct{} // closed at READY=1
}

func (s *service) listen(spec unitfile.Unit) (*readiness, error) {
	n := &readiness{ready: make(chan struct{})}
	if spec.Type != "notify" {
		return n, nil
	}
	path := filepath.Join(s.sup.opts.Notify, strings.TrimSuffix(s.name, ".service"))
	_ = os.Remove(path)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for readiness: %w", err)
	}
	// Services run as other users too.
	if err := os.Chmod(path, 0o666); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("listen for readiness: %w", err)
	}
	n.conn = conn
	go n.read()
	return n, nil
}

func (n *readiness) read() {
	buffer := make([]byte, 4096)
	said := false
	for {
		length, err := n.conn.Read(buffer)
		if err != nil {
			return
		}
		for line := range bytes.Lines(buffer[:length]) {
			if !said && string(bytes.TrimSpace(line)) == "READY=1" {
				said = true
				close(n.ready)
			}
		}
	}
}

func (n *readiness) env() []string {
	if n.conn == nil {
		return nil
	}
	return []string{"NOTIFY_SOCKET=" + n.conn.LocalAddr().String()}
}

func (n *readiness) close() {
	if n.conn != nil {
		_ = n.conn.Close()
		_ = os.Remove(n.conn.LocalAddr().String())
	}
}
