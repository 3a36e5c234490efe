package probe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Target is a node that may take writes.
type Target struct {
	Node string
	DSN  string
}

// Options say how a writer writes.
type Options struct {
	Targets []Target
	Name    string        // goes into the rows; one writer's own
	Every   time.Duration // from the start of a write to that of the next; 0: 5 ms
	Limit   time.Duration // a write that takes longer is given up as indeterminate; 0: 1.5 s
	Connect time.Duration // an attempt to connect that takes longer is given up; 0: 150 ms
}

// pause lies between two attempts at a node that took no writes.
const pause = 5 * time.Millisecond

// Writer writes rows, one a transaction and one at a time.
type Writer struct {
	opts    Options
	nodes   []node
	seekers sync.WaitGroup

	mu      sync.Mutex
	journal Journal
}

// node is a target that can be connected to.
type node struct {
	name string
	conf *pgx.ConnConfig
}

const table = `create table if not exists probe (id bigint primary key, at timestamptz not null, writer text not null)`

// Open makes the table on the node that takes writes, and a writer that goes on
// after the highest id in it. It waits for such a node until ctx ends.
func Open(ctx context.Context, o Options) (*Writer, error) {
	if o.Every == 0 {
		o.Every = 5 * time.Millisecond
	}
	if o.Limit == 0 {
		o.Limit = 1500 * time.Millisecond
	}
	if o.Connect == 0 {
		o.Connect = 150 * time.Millisecond
	}
	w := &Writer{opts: o, journal: Journal{Writer: o.Name}}
	for _, t := range o.Targets {
		conf, err := pgx.ParseConfig(t.DSN)
		if err != nil {
			return nil, fmt.Errorf("open probe: address of %s: %w", t.Node, err)
		}
		// One round trip a statement, and nothing to prepare in a new session.
		conf.DefaultQueryExecMode = pgx.QueryExecModeExec
		w.nodes = append(w.nodes, node{t.Node, conf})
	}
	defer w.seekers.Wait()
	s, err := w.find(ctx)
	if err != nil {
		return nil, fmt.Errorf("open probe: no node takes writes: %w", err)
	}
	defer s.end()
	if _, err := s.conn.Exec(ctx, table); err != nil {
		return nil, fmt.Errorf("open probe: %w", err)
	}
	if err := s.conn.QueryRow(ctx, `select coalesce(max(id), 0) + 1 from probe`).Scan(&w.journal.First); err != nil {
		return nil, fmt.Errorf("open probe: %w", err)
	}
	w.journal.Next = w.journal.First
	return w, nil
}

// Journal returns what has been done so far.
func (w *Writer) Journal() Journal {
	w.mu.Lock()
	defer w.mu.Unlock()
	j := w.journal
	j.Acks, j.Indeterminate, j.Refused = slices.Clone(j.Acks), slices.Clone(j.Indeterminate), slices.Clone(j.Refused)
	return j
}

// Last returns the latest acknowledgement, or one of no node.
func (w *Writer) Last() Ack {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.journal.Acks); n > 0 {
		return w.journal.Acks[n-1]
	}
	return Ack{}
}

// ErrTwice is the error of an id that was there before it was written.
var ErrTwice = errors.New("a row of this id is there already, though nobody has written it")

// Run writes until ctx ends. A failed write is never repeated: the next one has a
// new id. The error, if any, wraps ErrTwice. Run is called once.
func (w *Writer) Run(ctx context.Context) error {
	w.mu.Lock()
	w.journal.Began = time.Now()
	w.mu.Unlock()
	tick := time.NewTicker(w.opts.Every)
	defer tick.Stop()
	var s *session
	defer w.seekers.Wait()
	defer func() { s.end() }()
	for ctx.Err() == nil {
		if s == nil {
			var err error
			if s, err = w.find(ctx); err != nil {
				return nil
			}
		}
		how, err := w.write(ctx, s)
		if errors.Is(err, ErrTwice) {
			return err
		}
		if how != acknowledged {
			s.end()
			s = nil
			continue
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return nil
}

// write sends one row. What is under way when ctx ends is still waited for.
func (w *Writer) write(ctx context.Context, s *session) (outcome, error) {
	w.mu.Lock()
	id := w.journal.Next
	w.journal.Next++
	w.mu.Unlock()
	try, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.opts.Limit)
	defer cancel()
	s.unconfirmed = false
	_, err := s.conn.Exec(try, `insert into probe (id, at, writer) values ($1, $2, $3)`, id, time.Now(), w.opts.Name)
	now := time.Now()
	how := judge(err, s.unconfirmed)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch how {
	case acknowledged:
		w.journal.Acks = append(w.journal.Acks, Ack{ID: id, At: now, Node: s.node})
	case refused:
		w.journal.Refused = append(w.journal.Refused, id)
	default:
		w.journal.Indeterminate = append(w.journal.Indeterminate, id)
	}
	var p *pgconn.PgError
	if errors.As(err, &p) && p.Code == uniqueViolation {
		return how, fmt.Errorf("write id %d on %s: %w", id, s.node, ErrTwice)
	}
	return how, err
}

// outcome is what a client knows about a row that it sent. The zero value is
// that it knows nothing.
type outcome int

const (
	indeterminate outcome = iota
	acknowledged
	refused
)

// PostgreSQL's error codes.
const (
	uniqueViolation   = "23505"
	completionUnknown = "40003"
)

// judge tells what became of a row. Only an error that the server gave to the
// statement itself says that it is not there: one that ends the session may come
// after the commit, and so may everything that is no answer. A commit that stopped
// waiting for its standbys is reported as a success with a warning; it is
// durable on one node only (PostgreSQL: src/backend/replication/syncrep.c).
func judge(err error, unconfirmed bool) outcome {
	var p *pgconn.PgError
	switch {
	case err == nil && !unconfirmed:
		return acknowledged
	case errors.As(err, &p) && p.SeverityUnlocalized == "ERROR" && p.Code != completionUnknown && !unconfirmed:
		return refused
	}
	return indeterminate
}

// session is a connection to a node.
type session struct {
	conn        *pgx.Conn
	node        string
	unconfirmed bool // a commit was reported that standbys have not confirmed
}

// end closes a session without waiting for an answer. It may be nil.
func (s *session) end() {
	if s != nil {
		at, cancel := context.WithTimeout(context.Background(), pause)
		defer cancel()
		_ = s.conn.Close(at)
	}
}

// find returns a session with the first node that takes writes. All are tried
// at once, again and again, until ctx ends.
func (w *Writer) find(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found := make(chan *session)
	for _, n := range w.nodes {
		w.seekers.Go(func() { w.seek(ctx, n, found) })
	}
	select {
	case s := <-found:
		return s, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// seek offers a session with one node as soon as it takes writes. The session
// with a standby is kept and asked again: that is quicker, and costs the node
// less, than to connect anew.
func (w *Writer) seek(ctx context.Context, n node, found chan<- *session) {
	for ctx.Err() == nil {
		s, err := connect(ctx, n, w.opts.Connect)
		if err == nil && w.writable(ctx, s) {
			select {
			case found <- s:
				return
			case <-ctx.Done():
			}
		}
		s.end()
		sleep(ctx, pause)
	}
}

func connect(ctx context.Context, n node, limit time.Duration) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	s := &session{node: n.name}
	conf := n.conf.Copy()
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
func (w *Writer) writable(ctx context.Context, s *session) bool {
	for ctx.Err() == nil {
		yes, err := w.ask(ctx, s)
		if err != nil || yes {
			return err == nil
		}
		sleep(ctx, pause)
	}
	return false
}

func (w *Writer) ask(ctx context.Context, s *session) (yes bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, w.opts.Connect)
	defer cancel()
	err = s.conn.QueryRow(ctx, `select not pg_is_in_recovery() and current_setting('transaction_read_only') = 'off'`).Scan(&yes)
	return yes, err
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
