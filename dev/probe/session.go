package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Target is a node that may take writes.
type Target struct {
	Node string
	DSN  string
}

// FinderOptions say how a Finder looks.
type FinderOptions struct {
	Targets []Target
	Connect time.Duration // an attempt to connect that takes longer is given up; 0: 150 ms
	Pause   time.Duration // between two attempts at a node that took no writes; 0: 5 ms
	Dial    Dial          // nil: as this process is connected
}

// Dial opens a connection, as net.Dialer.DialContext does.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Finder finds the node that takes writes. It may be used by several at once.
type Finder struct {
	opts    FinderOptions
	nodes   []node
	seekers sync.WaitGroup
}

// node is a target that can be connected to.
type node struct {
	name string
	conf *pgx.ConnConfig
}

// NewFinder returns a Finder; an address that cannot be is an error.
func NewFinder(o FinderOptions) (*Finder, error) {
	if o.Connect == 0 {
		o.Connect = 150 * time.Millisecond
	}
	if o.Pause == 0 {
		o.Pause = 5 * time.Millisecond
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	f := &Finder{opts: o}
	for _, t := range o.Targets {
		conf, err := pgx.ParseConfig(t.DSN)
		if err != nil {
			return nil, fmt.Errorf("address of %s: %w", t.Node, err)
		}
		// One round trip a statement, and nothing to prepare in a new session.
		conf.DefaultQueryExecMode = pgx.QueryExecModeExec
		f.nodes = append(f.nodes, node{t.Node, conf})
	}
	return f, nil
}

// Find returns a session with the first node that takes writes. All are tried
// at once, again and again, until ctx ends.
func (f *Finder) Find(ctx context.Context) (*Session, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found := make(chan *Session)
	for _, n := range f.nodes {
		f.seekers.Go(func() { f.seek(ctx, n, found) })
	}
	select {
	case s := <-found:
		return s, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Wait returns when nothing of earlier calls of Find is under way any more.
func (f *Finder) Wait() { f.seekers.Wait() }

// seek offers a session with one node as soon as it takes writes. The session
// with a standby is kept and asked again: that is quicker, and costs the node
// less, than to connect anew.
func (f *Finder) seek(ctx context.Context, n node, found chan<- *Session) {
	for ctx.Err() == nil {
		s, err := f.connect(ctx, n)
		if err == nil && f.writable(ctx, s) {
			select {
			case found <- s:
				return
			case <-ctx.Done():
			}
		}
		s.End()
		sleep(ctx, f.opts.Pause)
	}
}

// errOnce is the error of a session's second connection.
var errOnce = errors.New("a session has one connection")

// connect makes a session whose client never asks the server to cancel: a
// cancelled wait for standbys makes a commit visible that nobody has confirmed, and
// pgx would cancel whenever it gives up. It does so over a second connection.
func (f *Finder) connect(ctx context.Context, n node) (*Session, error) {
	ctx, cancel := context.WithTimeout(ctx, f.opts.Connect)
	defer cancel()
	s := &Session{Node: n.name}
	conf := n.conf.Copy()
	var dialled atomic.Bool
	conf.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if dialled.Swap(true) {
			return nil, errOnce
		}
		return f.opts.Dial(ctx, network, address)
	}
	// The warning of a commit that stopped waiting for its standbys has no code
	// of its own. An insert gives no other one.
	conf.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		s.unconfirmed = s.unconfirmed || n.SeverityUnlocalized == "WARNING"
	}
	var err error
	if s.conn, err = pgx.ConnectConfig(ctx, conf); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", n.name, err)
	}
	return s, nil
}

// writable asks a node until it takes writes, fails, or ctx ends.
func (f *Finder) writable(ctx context.Context, s *Session) bool {
	for ctx.Err() == nil {
		yes, err := f.ask(ctx, s)
		if err != nil || yes {
			return err == nil
		}
		sleep(ctx, f.opts.Pause)
	}
	return false
}

func (f *Finder) ask(ctx context.Context, s *Session) (yes bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, f.opts.Connect)
	defer cancel()
	err = s.conn.QueryRow(ctx, `select not pg_is_in_recovery() and current_setting('transaction_read_only') = 'off'`).Scan(&yes)
	return yes, err
}

// Session is a connection to a node.
type Session struct {
	Node string

	conn        *pgx.Conn
	unconfirmed bool // a commit was reported that standbys have not confirmed
}

// Do runs one statement, which is all that f does, and tells what became of it.
func (s *Session) Do(ctx context.Context, f func(context.Context, *pgx.Conn) error) (Outcome, error) {
	s.unconfirmed = false
	err := f(ctx, s.conn)
	return judge(err, s.unconfirmed), err
}

// End ends a session without waiting for an answer. It may be nil.
func (s *Session) End() {
	if s != nil {
		at, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
		defer cancel()
		_ = s.conn.Close(at)
	}
}

// Outcome is what a client knows about a statement that it sent. The zero value
// is that it knows nothing.
type Outcome int

// The outcomes.
const (
	Indeterminate Outcome = iota
	Acknowledged
	Refused
)

// PostgreSQL's error codes.
const (
	uniqueViolation   = "23505"
	completionUnknown = "40003"
)

// judge tells what became of a statement. Only an error that the server gave to the
// statement itself says that it did nothing: one that ends the session may come
// after the commit, and so may everything that is no answer. A commit that stopped
// waiting for its standbys is reported as a success with a warning; it is
// durable on one node only (PostgreSQL: src/backend/replication/syncrep.c).
func judge(err error, unconfirmed bool) Outcome {
	var p *pgconn.PgError
	switch {
	case err == nil && !unconfirmed:
		return Acknowledged
	case errors.As(err, &p) && p.SeverityUnlocalized == "ERROR" && p.Code != completionUnknown && !unconfirmed:
		return Refused
	}
	return Indeterminate
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
