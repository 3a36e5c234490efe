package supervisor

import (
	"encoding/json"
	"io"
	"net"
	"time"

	"github.com/understudy-ha/understudy/services"
)

// FarewellMax is how long a shutdown waits for those who asked to be told of it.
const FarewellMax = 10 * time.Second

// inhibitor is a client that is told of a shutdown before anything is stopped.
type inhibitor struct {
	conn net.Conn
	gone chan struct{} // closed when it has hung up
}

// inhibit keeps a client that holds up the shutdown until it hangs up.
func (s *Supervisor) inhibit(conn net.Conn) {
	i := &inhibitor{conn, make(chan struct{})}
	s.mu.Lock()
	s.inhibitors[i] = struct{}{}
	s.mu.Unlock()
	s.log.Info("a shutdown will be told beforehand")
	_, _ = io.Copy(io.Discard, conn)
	s.mu.Lock()
	delete(s.inhibitors, i)
	s.mu.Unlock()
	close(i.gone)
}

// farewell tells all inhibitors that the node goes down, and waits for them.
func (s *Supervisor) farewell() {
	s.mu.Lock()
	var told []*inhibitor
	for i := range s.inhibitors {
		told = append(told, i)
	}
	s.mu.Unlock()
	late := time.After(FarewellMax)
	for _, i := range told {
		_ = json.NewEncoder(i.conn).Encode(services.Response{}) // one that is gone shows by gone
	}
	for _, i := range told {
		select {
		case <-i.gone:
		case <-late:
			s.log.Warn("shutdown does not wait any longer")
			return
		}
	}
}
