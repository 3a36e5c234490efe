package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/rig"
)

const (
	clients   = 4
	registers = 3                       // in one window
	windowFor = 10 * time.Second        // then other registers take their place: short histories are decided quickly
	opEvery   = 25 * time.Millisecond   // of one client
	opLimit   = 1500 * time.Millisecond // then an operation is given up
	lookEvery = 50 * time.Millisecond   // of one lookout
)

const schema = `create table if not exists chaos_register (key text primary key, value bigint not null);
create table if not exists chaos_item (list text not null, time_window bigint not null, item bigint not null)`

// Each statement is one transaction. What writes says on which timeline.
const (
	onTimeline = `substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)`
	readSQL    = `select pg_is_in_recovery(), coalesce((select value from chaos_register where key = $1), 0)`
	writeSQL   = `insert into chaos_register values ($1, $2) on conflict (key) do update set value = excluded.value returning ` + onTimeline
	casSQL     = `update chaos_register set value = $2 where key = $1 and value = $3 returning ` + onTimeline
	appendSQL  = `insert into chaos_item values ($1, $2, $3) returning ` + onTimeline
)

// workload are the clients of a cluster: some that follow the node that takes
// writes, and one lookout on every node, which reads whenever that node does not
// say that it is a standby.
type workload struct {
	*history
	finder *probe.Finder
	nodes  []way // to each node
	seed   int64

	window atomic.Int64 // the registers in use
	last   atomic.Int64 // the greatest value used; every value is written once

	mu   sync.Mutex
	busy map[int64]int // by window, operations under way
}

// way is how one node is reached.
type way struct {
	finder *probe.Finder
	status string // URL of /status
}

// newWorkload makes the tables.
func newWorkload(ctx context.Context, h *history, seed int64, cluster *rig.Rig) (*workload, error) {
	targets := cluster.Targets()
	w := &workload{history: h, seed: seed, busy: make(map[int64]int)}
	options := probe.FinderOptions{Targets: targets, Connect: 300 * time.Millisecond, Pause: 20 * time.Millisecond}
	var err error
	if w.finder, err = probe.NewFinder(options); err != nil {
		return nil, err
	}
	for i, t := range targets {
		options.Targets = []probe.Target{t}
		f, err := probe.NewFinder(options)
		if err != nil {
			return nil, err
		}
		w.nodes = append(w.nodes, way{f, cluster.Nodes[i].StatusURL})
	}
	defer w.finder.Wait()
	s, err := w.finder.Find(ctx)
	if err != nil {
		return nil, fmt.Errorf("no node takes writes: %w", err)
	}
	defer s.End()
	for _, statement := range strings.Split(schema, ";") {
		_, err := s.Do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, statement)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("make tables: %w", err)
		}
	}
	return w, nil
}

// run lets all clients work until ctx ends.
func (w *workload) run(ctx context.Context) {
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() { w.client(ctx, i) })
	}
	for i, n := range w.nodes {
		all.Go(func() { w.lookout(ctx, i, n.finder) })
	}
	all.Go(func() {
		for tick := time.NewTicker(windowFor); ; {
			select {
			case <-tick.C:
				w.window.Add(1)
			case <-ctx.Done():
				tick.Stop()
				return
			}
		}
	})
	all.Wait()
	w.finder.Wait()
	for _, n := range w.nodes {
		n.finder.Wait()
	}
}

// enter and leave stand around an operation in a window.
func (w *workload) enter() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	window := w.window.Load()
	w.busy[window]++
	return window
}

func (w *workload) leave(window int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy[window]--; w.busy[window] == 0 {
		delete(w.busy, window)
	}
}

// turn goes on to another window and returns it when nothing is under way in the
// earlier ones any more.
func (w *workload) turn(ctx context.Context) (int64, error) {
	w.mu.Lock()
	window := w.window.Add(1)
	w.mu.Unlock()
	for {
		left := 0
		w.mu.Lock()
		for at, n := range w.busy {
			if at < window {
				left += n
			}
		}
		w.mu.Unlock()
		if left == 0 {
			return window, nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return 0, fmt.Errorf("wait for %d operations to end: %w", left, err)
		}
	}
}

// statusWithin is how long a node has to answer /status and then to take a
// session, for those clients that go by it.
const statusWithin = 500 * time.Millisecond

// find returns a session with the node to work on. Clients are of two sorts: one
// takes any node that says that it takes writes, the other one goes to the node whose
// /status says that it is active, as a load balancer does.
func (w *workload) find(ctx context.Context, number int) (*probe.Session, error) {
	if number%2 == 0 {
		return w.finder.Find(ctx)
	}
	for ; ctx.Err() == nil; _ = pause(ctx, lookEvery) {
		for _, n := range w.nodes {
			if s, err := w.route(ctx, n); err == nil {
				return s, nil
			}
		}
	}
	return nil, ctx.Err()
}

func (w *workload) route(ctx context.Context, n way) (*probe.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, statusWithin)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, n.status, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, errStandby
	}
	return n.finder.Find(ctx)
}

// client is one of those that follow the node that takes writes. It never repeats
// an operation, and leaves a session that has not answered.
func (w *workload) client(ctx context.Context, number int) {
	name := fmt.Sprintf("client%d", number+1)
	random := rand.New(rand.NewPCG(uint64(w.seed), uint64(number)))
	seen := make(map[string]int64)
	tick := time.NewTicker(opEvery)
	defer tick.Stop()
	var s *probe.Session
	defer func() { s.End() }()
	for ctx.Err() == nil {
		if s == nil {
			var err error
			if s, err = w.find(ctx, number); err != nil {
				return
			}
		}
		window := w.enter()
		o := w.draw(random, window, seen)
		o.Client, o.Window = name, window
		answered := w.do(ctx, s, &o)
		w.leave(window)
		if !answered {
			s.End()
			s = nil
		}
		if len(seen) > 4*registers {
			clear(seen)
		}
		if o.Outcome == OK && o.Action == Read {
			seen[o.Key] = o.Value
		}
		if o.acknowledged() && o.Action != Append {
			seen[o.Key] = o.Arg
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// draw chooses what to do next. A compare-and-set expects what this client has
// seen last.
func (w *workload) draw(random *rand.Rand, window int64, seen map[string]int64) Op {
	key := fmt.Sprintf("w%d-%d", window, random.IntN(registers))
	switch n := random.IntN(100); {
	case n < 35:
		return Op{Action: Read, Key: key}
	case n < 55:
		return Op{Action: Write, Key: key, Arg: w.last.Add(1)}
	case n < 80 && seen[key] != 0:
		return Op{Action: CAS, Key: key, Arg: w.last.Add(1), Old: seen[key]}
	}
	return Op{Action: Append, Key: fmt.Sprintf("list%d", random.IntN(registers)), Arg: w.last.Add(1)}
}

// errStandby is the error of a read from a node that says that it is a standby.
var errStandby = errors.New("the node is a standby")

// do does one operation and writes it down. It returns false when the session
// cannot be gone on with.
func (w *workload) do(ctx context.Context, s *probe.Session, o *Op) bool {
	try, cancel := context.WithTimeout(context.WithoutCancel(ctx), opLimit)
	defer cancel()
	o.Node, o.Call = s.Node, w.now()
	how, err := s.Do(try, func(ctx context.Context, conn *pgx.Conn) error {
		switch o.Action {
		case Read:
			var standby bool
			err := conn.QueryRow(ctx, readSQL, o.Key).Scan(&standby, &o.Value)
			if err == nil && standby {
				err = errStandby
			}
			return err
		case Write:
			return conn.QueryRow(ctx, writeSQL, o.Key, o.Arg).Scan(&o.Timeline)
		case CAS:
			err := conn.QueryRow(ctx, casSQL, o.Key, o.Arg, o.Old).Scan(&o.Timeline)
			if errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			o.Swapped = err == nil
			return err
		}
		return conn.QueryRow(ctx, appendSQL, o.Key, o.Window, o.Arg).Scan(&o.Timeline)
	})
	o.Return, o.Outcome = w.now(), outcome(o.Action, how)
	if o.Outcome != OK {
		o.Timeline, o.Swapped, o.Value = "", false, 0
	}
	if err != nil {
		o.Err = err.Error()
	}
	w.add(*o)
	return err == nil && o.Outcome == OK
}

// lookout reads from one node as long as that does not say that it is a standby:
// a former active node that still answers is found by it.
func (w *workload) lookout(ctx context.Context, number int, f *probe.Finder) {
	name := fmt.Sprintf("lookout%d", number+1)
	random := rand.New(rand.NewPCG(uint64(w.seed), uint64(1000+number)))
	for ctx.Err() == nil {
		s, err := f.Find(ctx)
		if err != nil {
			return
		}
		for answered := true; answered && ctx.Err() == nil; {
			window := w.enter()
			o := Op{Client: name, Window: window, Action: Read, Key: fmt.Sprintf("w%d-%d", window, random.IntN(registers))}
			answered = w.do(ctx, s, &o)
			w.leave(window)
			_ = pause(ctx, lookEvery)
		}
		s.End()
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
