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

// Options say how a writer writes.
type Options struct {
	Targets []Target
	Name    string        // goes into the rows; one writer's own
	Every   time.Duration // from the start of a write to that of the next; 0: 5 ms
	Limit   time.Duration // a write that takes longer is given up as indeterminate; 0: 1.5 s
	Connect time.Duration // an attempt to connect that takes longer is given up; 0: 150 ms
	Pause   time.Duration // between two looks at a node that takes no writes; 0: 5 ms
	Dial    Dial          // nil: as this process is connected
	First   int64         // id of the first row, in the table of another writer; 0: after the highest id there is
}

// Writer writes rows, one a transaction and one at a time.
type Writer struct {
	opts   Options
	finder *Finder

	mu      sync.Mutex
	journal Journal
}

const (
	table  = `create table if not exists probe (id bigint primary key, at timestamptz not null, writer text not null)`
	insert = `insert into probe (id, at, writer) values ($1, $2, $3) returning substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)`
)

// Open makes the table on the node that takes writes, and a writer that goes on
// after the highest id in it. It waits for such a node until ctx ends. With First
// it looks for none.
func Open(ctx context.Context, o Options) (*Writer, error) {
	if o.Every == 0 {
		o.Every = 5 * time.Millisecond
	}
	if o.Limit == 0 {
		o.Limit = 1500 * time.Millisecond
	}
	finder, err := NewFinder(FinderOptions{Targets: o.Targets, Connect: o.Connect, Pause: o.Pause, Dial: o.Dial})
	if err != nil {
		return nil, fmt.Errorf("open probe: %w", err)
	}
	w := &Writer{opts: o, finder: finder, journal: Journal{Writer: o.Name, First: o.First, Next: o.First}}
	if o.First != 0 {
		return w, nil
	}
	defer w.finder.Wait()
	s, err := w.finder.Find(ctx)
	if err != nil {
		return nil, fmt.Errorf("open probe: no node takes writes: %w", err)
	}
	defer s.End()
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
	var s *Session
	defer w.finder.Wait()
	defer func() { s.End() }()
	for ctx.Err() == nil {
		if s == nil {
			var err error
			if s, err = w.finder.Find(ctx); err != nil {
				return nil
			}
		}
		how, err := w.write(ctx, s)
		if errors.Is(err, ErrTwice) {
			return err
		}
		if how != Acknowledged {
			s.End()
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
func (w *Writer) write(ctx context.Context, s *Session) (Outcome, error) {
	w.mu.Lock()
	id := w.journal.Next
	w.journal.Next++
	w.mu.Unlock()
	try, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.opts.Limit)
	defer cancel()
	ack := Ack{ID: id, Sent: time.Now(), Node: s.Node}
	how, err := s.Do(try, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, insert, id, ack.Sent, w.opts.Name).Scan(&ack.Timeline)
	})
	ack.At = time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	switch how {
	case Acknowledged:
		w.journal.Acks = append(w.journal.Acks, ack)
	case Refused:
		w.journal.Refused = append(w.journal.Refused, id)
	default:
		w.journal.Indeterminate = append(w.journal.Indeterminate, id)
	}
	var p *pgconn.PgError
	if errors.As(err, &p) && p.Code == uniqueViolation {
		return how, fmt.Errorf("write id %d on %s: %w", id, s.Node, ErrTwice)
	}
	return how, err
}
