package handlerrunner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

var (
	_ Postgres    = (*fakePG)(nil)
	_ Replication = (*fakePG)(nil)
	_ Directory   = (*fakePG)(nil)
)

const (
	systemID   = "7000000000000000001"
	recordSize = 64 << 10 // bytes of WAL per commit
	nobody     = "nobody"
)

// errStarting: the server has not read enough WAL to be consistent.
var errStarting = errors.New("the server is starting up")

var errNotStandby = errors.New("the server is not a standby")

// fakePG is a data directory and the server on it. WAL is a list of records
// that bear the number of the commit they are; records that are no commits, such
// as the end of a recovery, have a number of their own. The world's lock guards
// it. Methods that a Handler calls while it holds its lock moving do not wait:
// a mutex that is waited for holds up the time of a synctest bubble.
type fakePG struct {
	h        *host
	wal      []int
	timeline cluster.Timeline
	history  cluster.History
	complete bool

	running  bool
	primary  bool
	gate     bool
	upstream string // name; of a standby that may receive
	quorum   cluster.Quorum
	through  cluster.Tenure // of the upstream
	slots    []string       // who may take WAL
	tenure   cluster.Tenure // of the slots
	pending  []int          // commits that wait for their quorum
	sealed   bool           // was shut down cleanly

	unflushed int // records at the end of wal that are not on disk yet; only in simulations
	streams       // and who gets the others; only in simulations

	unplugged bool // its receiver cannot connect
	stalled   bool // its receiver is connected and gets nothing
	stranded  bool // the WAL it needs is gone; a clone mends it

	disk string // what is wrong with it

	failRewinds, failClones int // so many of the next ones fail
	wasteRewinds            int
	hangs                   bool          // a fast shutdown does not end
	checkpoints             time.Duration // how long one takes
	failPromotes            int
	mending                 bool             // was copied, and cannot tell where it is before it streams
	skip                    cluster.Timeline // so many timelines are passed over by the next promotion
}

func newPG(h *host) *fakePG {
	return &fakePG{h: h, wal: []int{0}, timeline: 1, complete: true}
}

// lsn is the durable end of WAL.
func (p *fakePG) lsn() cluster.LSN { return cluster.LSN(p.durable() * recordSize) }

func (p *fakePG) position() cluster.Position {
	return cluster.Position{Timeline: p.lineAt(p.durable()), LSN: p.lsn()}
}

// commit accepts a write, if it is open, and leaves it pending.
func (p *fakePG) commit(id int) bool {
	if !p.running || !p.primary || !p.gate || p.h.frozen() || p.h.dead || len(p.pending) > 0 {
		return false
	}
	p.wal = append(p.wal, id)
	p.pending = append(p.pending, id)
	p.h.w.madeAt[id] = time.Now()
	return true
}

// acknowledge returns the pending commits, all at the end of the WAL, if the
// quorum has them.
func (p *fakePG) acknowledge() (acked []int) {
	if len(p.pending) == 0 || p.h.frozen() || !p.running {
		return nil
	}
	have := 0
	for _, s := range p.standbys() {
		if s.Flushed >= p.lsn() && slices.Contains(p.quorum.Members, s.Name) {
			have++
		}
	}
	if have < p.quorum.K {
		return nil
	}
	acked, p.pending = p.pending, nil
	return acked
}

// stop ends the server. Every session ends; whatever waited was not
// acknowledged.
func (p *fakePG) stop(clean bool) {
	if !p.running {
		return
	}
	p.h.w.flow()
	p.running, p.primary, p.pending, p.sealed = false, false, nil, clean
	p.closeStreams()
	p.h.w.flow()
}

// start always starts a standby.
func (p *fakePG) start() {
	p.running, p.primary, p.sealed, p.unflushed = true, false, false, 0
	p.h.w.flow()
}

func (p *fakePG) Observe(ctx context.Context) (Database, error) {
	if err := p.h.pause(ctx, 300*time.Microsecond); err != nil {
		return Database{}, err
	}
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	switch {
	case !p.running:
		return Database{}, ErrNotRunning
	case p.mending:
		return Database{}, errStarting
	}
	db := Database{
		Running: cluster.Yes, Primary: cluster.TriOf(p.primary), Position: p.position(), SystemID: systemID, InEffect: p.quorum,
	}
	if p.primary {
		db.Standbys = p.standbys()
	} else if s := p.source(); s != nil {
		ahead := s.h.fast - p.h.fast
		db.Streaming, db.Upstream, db.Lag, db.Ahead = true, p.upstream, int64(s.lsn()-p.lsn()), &ahead
	}
	return db, nil
}

func (p *fakePG) Promote(ctx context.Context) (cluster.Position, error) {
	if err := p.h.pause(ctx, 40*time.Millisecond); err != nil {
		return cluster.Position{}, err
	}
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	if !p.running {
		return cluster.Position{}, ErrNotRunning
	}
	if p.failPromotes > 0 {
		p.failPromotes--
		return cluster.Position{}, errors.New("the server did not accept the request")
	}
	if !p.primary {
		p.unflushed = 0
		p.history = append(slices.Clone(p.history), cluster.Fork{Timeline: p.timeline, LSN: p.lsn()})
		if p.timeline += p.skip; p.skip > 0 { // as happens in PostgreSQL, the last one that was skipped is an ancestor
			p.history = append(p.history, cluster.Fork{Timeline: p.timeline, LSN: p.lsn()})
		}
		p.timeline++
		p.primary, p.skip = true, 0
		p.h.w.records--
		p.wal = append(p.wal, p.h.w.records)
		p.h.w.flow()
	}
	return cluster.Position{Timeline: p.timeline, LSN: p.history[len(p.history)-1].LSN}, nil
}

func (p *fakePG) SetQuorum(ctx context.Context, q cluster.Quorum) error {
	if err := p.h.pause(ctx, 2*time.Millisecond); err != nil {
		return err
	}
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	if !p.running {
		return ErrNotRunning
	}
	p.quorum = q
	p.h.w.flow()
	return nil
}

func (p *fakePG) Gate(_ context.Context, open bool) error {
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	if !p.running {
		return ErrNotRunning
	}
	if p.gate = open; !open {
		p.pending, p.waiting = nil, nil
	}
	p.h.w.flow()
	return nil
}

func (p *fakePG) checkpoint(ctx context.Context) error {
	if err := p.h.pause(ctx, 5*time.Millisecond+p.checkpoints); err != nil {
		return err
	}
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	if !p.running {
		return ErrNotRunning
	}
	return nil
}

func (p *fakePG) Detach(ctx context.Context) (cluster.Position, error) {
	if p.h.isolated { // the receiver waits for its upstream
		if err := p.h.pause(ctx, 50*time.Millisecond); err != nil {
			return cluster.Position{}, err
		}
	}
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	if p.running && p.primary {
		return cluster.Position{}, errNotStandby
	}
	p.upstream, p.unflushed = "", 0
	p.hangUp()
	switch {
	case !p.running:
		return cluster.Position{}, ErrNotRunning
	case p.mending:
		return cluster.Position{}, errStarting
	}
	return p.position(), nil
}

func (p *fakePG) Follow(_ context.Context, upstream cluster.Upstream) error {
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	if p.running && p.primary {
		return errNotStandby
	}
	if p.skip > 0 { // it must not be on its way to a timeline that nobody has made
		p.skip = 0
		p.stop(true)
	}
	// An active node that is open may be asked by one of which nobody knows where it is, which it does not count: see recruits.
	l := p.h.w.reg.view.Leader
	if u := p.h.w.hosts[upstream.Name]; p.running && u != nil && l.Held && l.Node == u.name && slices.Contains(u.pg.quorum.Members, p.h.name) && p.forked(u.pg) {
		p.h.w.fault("%s, at %s, is pointed at %s, at %s, which would count what it has as confirmed", p.h.name, p.position(), u.name, u.pg.position())
	}
	p.upstream, p.through, p.quorum = upstream.Name, upstream.Tenure, cluster.Quorum{Members: []string{nobody}, K: 1}
	p.h.w.note(p.h.name, "follows %s", upstream.Name)
	if !p.running {
		return ErrNotRunning
	}
	p.h.w.flow()
	return nil
}

func (p *fakePG) Slots(ctx context.Context, t cluster.Tenure, nodes []string) error {
	if err := p.h.pause(ctx, time.Millisecond); err != nil {
		return err
	}
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	p.slots, p.tenure = slices.Clone(nodes), t
	for name, st := range p.out {
		if !p.sendsTo(st.to) {
			st.gone = true
			delete(p.out, name)
		}
	}
	p.h.w.flow()
	return nil
}

func (p *fakePG) History(_ context.Context, tl cluster.Timeline) (cluster.History, error) {
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	if tl != p.timeline {
		return nil, fmt.Errorf("timeline %d is not known, only %d", tl, p.timeline)
	}
	return slices.Clone(p.history), nil
}

func (p *fakePG) Complete(context.Context) (bool, error) {
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	return p.complete, nil
}

func (p *fakePG) Final(ctx context.Context) (cluster.Position, error) {
	if err := p.h.pause(ctx, time.Millisecond); err != nil {
		return cluster.Position{}, err
	}
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	if p.running || !p.sealed {
		return cluster.Position{}, errors.New("the server was not shut down cleanly")
	}
	return p.position(), nil
}

// begin starts a copy from node. That node must have told that it is ready: one
// that is still on its way may yet be passed over.
func (p *fakePG) begin(node cluster.Upstream, rewind bool) {
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	if l := p.h.w.reg.view.Leader; p.h.w.sim == nil && (l.Node != node.Name || !l.Serves()) {
		p.h.w.fault("%s is mended from %q, which serves nobody", p.h.name, node.Name)
	}
	if rewind {
		p.complete = false
	}
}

// origin is the source of a copy.
func (p *fakePG) origin(node cluster.Upstream) (*fakePG, error) {
	u := p.h.w.hosts[node.Name]
	if u == nil || u.dead || !p.h.reaches(u) || u.frozen() || !u.pg.running || !u.pg.primary || p.h.w.sim != nil && !p.h.w.sim.linked(p.h.name, node.Name) {
		return nil, fmt.Errorf("%q cannot be reached, or is no primary", node.Name)
	}
	return u.pg, nil
}

func (p *fakePG) take(from *fakePG, in cluster.Tenure) {
	p.slots = nil // neither pg_basebackup nor pg_rewind brings any, or leaves any
	p.wal, p.timeline, p.history = slices.Clone(from.wal[:len(from.wal)-from.unflushed]), from.timeline, slices.Clone(from.history)
	p.unflushed = 0
	p.complete, p.stranded, p.upstream, p.through = true, false, from.h.name, in
}

func (p *fakePG) Rewind(ctx context.Context, source cluster.Upstream) error {
	p.begin(source, true)
	if err := p.h.pause(ctx, 200*time.Millisecond); err != nil {
		return err
	}
	return p.rewound(source)
}

// rewound ends a rewind, for better or worse.
func (p *fakePG) rewound(source cluster.Upstream) error {
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	from, err := p.origin(source)
	switch {
	case err != nil:
		return err
	case p.running:
		return errors.New("the server runs")
	case p.failRewinds > 0:
		p.failRewinds--
		return errors.New("rewind failed half way")
	case p.wasteRewinds > 0:
		p.wasteRewinds--
		p.complete = true
		return nil
	case p.timeline == from.timeline:
		return errors.New("nothing to rewind in a directory that has diverged")
	}
	if p.h.w.sim != nil {
		p.h.w.sim.mends(p, from)
	}
	p.take(from, source.Tenure)
	p.mending = p.h.w.sim == nil
	return nil
}

func (p *fakePG) Clone(ctx context.Context, source cluster.Upstream, progress func(string)) error {
	p.begin(source, false)
	progress("cloning from " + source.Name)
	if err := p.h.pause(ctx, time.Second); err != nil {
		return err
	}
	return p.cloned(source)
}

// cloned puts a clone in the place of the directory.
func (p *fakePG) cloned(source cluster.Upstream) error {
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	from, err := p.origin(source)
	switch {
	case err != nil:
		return err
	case p.running:
		return errors.New("the server runs")
	case p.failClones > 0:
		p.failClones--
		return errors.New("the disk is full")
	}
	if p.h.w.sim != nil {
		p.h.w.sim.lays(p)
	}
	p.take(from, source.Tenure)
	p.mending = p.h.w.sim == nil
	return nil
}
