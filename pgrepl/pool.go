package pgrepl

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// pool keeps the connections that are idle, so that a look every 500 ms costs no
// fork. It has no upper bound: a call that hangs must not hold up another one.
type pool struct {
	connect func(context.Context) (*pgx.Conn, error)

	mu   sync.Mutex
	idle []*pgx.Conn
}

// maxIdle connections are kept; more are closed after use.
const maxIdle = 2

// get returns a connection that was open a moment ago, or a new one.
func (p *pool) get(ctx context.Context) (*pgx.Conn, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return c, nil
	}
	p.mu.Unlock()
	return p.connect(ctx)
}

// put takes a connection back. After an error pgx has closed those that cannot
// be used any more; one that died idle fails its next use and is then dropped.
func (p *pool) put(c *pgx.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.IsClosed() || c.PgConn().IsBusy() || c.PgConn().TxStatus() != 'I' || len(p.idle) >= maxIdle {
		go discard(c)
		return
	}
	p.idle = append(p.idle, c)
}

// drain closes the idle connections.
func (p *pool) drain() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, c := range idle {
		discard(c)
	}
}

func discard(c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c.Close(ctx)
}

// with runs f on a connection. A pooled one that turns out to be dead before it
// did anything is replaced once by a new one: the server may have restarted.
func (p *pool) with(ctx context.Context, f func(*pgx.Conn) error) error {
	c, err := p.get(ctx)
	if err != nil {
		return err
	}
	err = f(c)
	if err != nil && c.IsClosed() && ctx.Err() == nil {
		p.drain()
		if c, err = p.connect(ctx); err != nil {
			return err
		}
		err = f(c)
	}
	p.put(c)
	return err
}
