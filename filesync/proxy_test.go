package filesync

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// A proxy forwards connections. After freeze those that exist neither forward
// nor end, as if the far host had lost its power; new ones work.
type proxy struct {
	to     string
	mu     sync.Mutex
	frozen chan struct{} // of the connections made now
	open   []net.Conn
}

func newProxy(t *testing.T, ip, to string) (*proxy, int) {
	t.Helper()
	l, err := net.Listen("tcp", ip+":0")
	ok(t, err)
	p := &proxy{to: to, frozen: make(chan struct{})}
	var running sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		for _, c := range p.open {
			c.Close()
		}
		p.mu.Unlock()
		running.Wait()
	})
	running.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", p.to)
			if err != nil {
				near.Close()
				continue
			}
			p.mu.Lock()
			p.open = append(p.open, near, far)
			frozen := p.frozen
			p.mu.Unlock()
			running.Go(func() { forward(near, far, frozen) })
			running.Go(func() { forward(far, near, frozen) })
		}
	})
	return p, l.Addr().(*net.TCPAddr).Port
}

func forward(from, to net.Conn, frozen <-chan struct{}) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		select {
		case <-frozen:
			_, _ = io.Copy(io.Discard, from)
			return
		default:
		}
		if err == nil {
			_, err = to.Write(buf[:n])
		}
		if err != nil {
			from.Close()
			to.Close()
			return
		}
	}
}

func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.frozen)
	p.frozen = make(chan struct{})
}

// Syncthing takes a peer that vanished without a word for connected during
// minutes and refuses its new connection.
func TestAPeerThatVanishedIsLetInAgain(t *testing.T) {
	st, s := newSites(t, "a", "b")
	a, b := s[0], s[1]
	var proxies []*proxy
	for _, x := range s {
		st.change(func(v *cluster.View) {
			n := v.Nodes[x.name]
			p, port := newProxy(t, n.Address, x.opts.Listen)
			proxies = append(proxies, p)
			n.Ports.FileSync = port
			v.Nodes[x.name] = n
		})
	}
	st.activate("a", 1)
	a.run()
	b.run()
	inSync(t, 1, a, b)
	for _, p := range proxies {
		p.freeze()
	}
	b.stop()
	if !a.engine.model.ConnectedTo(b.engine.self) {
		t.Fatal("a has noticed; the test tests nothing")
	}
	b.run()
	began := time.Now()
	a.write("x", "1")
	has(t, "x", "1", b)
	t.Logf("synchronised %s after the return", time.Since(began).Round(time.Millisecond))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ok(t, a.engine.Reset(ctx, "b"))
	a.write("y", "2")
	has(t, "y", "2", b)
}
