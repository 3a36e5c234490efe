package checkrunner

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// Poster keeps the TTL checks of this node in the local Consul agent.
type Poster interface {
	// Register makes each check exist with its TTL. A check that exists keeps
	// its present state. The agent tells Consul's servers of all of them.
	Register(ctx context.Context, ttls map[cluster.Check]time.Duration) error
	// Told says whether the servers have the checks as the agent has them.
	Told(ctx context.Context) (bool, error)
	// Post renews a check as passing, or fails it at once.
	Post(ctx context.Context, check cluster.Check, ok bool, output string) error
}

// Views tells the state of the cluster.
type Views interface {
	// Watch calls back with the present view, then after every change, until
	// ctx ends. It returns early with an error when the registry cannot be
	// read; it is then called again.
	Watch(ctx context.Context, changed func(cluster.View)) error
}

// Database probes the PostgreSQL server of this node. Calls are concurrent.
type Database interface {
	// Ping connects to the server's port, and no more.
	Ping(ctx context.Context) error
	// Select1 asks for an answer to select 1.
	Select1(ctx context.Context) error
	// Role tells what the server is at the moment.
	Role(ctx context.Context) (Role, error)
	// Hold opens a connection of its own, leaves it idle and returns in the
	// moment in which it is lost, or cannot be opened.
	Hold(ctx context.Context) error
}

// Role is what a PostgreSQL server is at one moment.
type Role struct {
	Primary      cluster.Tri // out of recovery
	UpstreamHost string      // address that a standby's primary_conninfo names
	Streaming    bool        // a standby's WAL receiver streams
	LagBytes     int64       // a standby's distance to what its upstream has sent; negative: not known
	Timeline     cluster.Timeline
}

// Units tells whether units run.
type Units interface {
	// State returns Yes for a unit that runs, No for one that does not and
	// will not by itself, and Unknown for one on its way: starting, or about
	// to be started again. Detail is the unit manager's own word for it.
	State(ctx context.Context, unit string) (active cluster.Tri, detail string, err error)
}

// UnitEvents may be implemented by Units as well: then a unit that dies is
// noticed at once.
type UnitEvents interface {
	// Events calls back after every change of a unit's state, until ctx ends
	// or the connection to the unit manager is lost.
	Events(ctx context.Context, changed func(unit string)) error
}

// Options are what Run works with. All are required but where it says so.
type Options struct {
	Node   string
	Kind   cluster.Kind // a runner has no checks of a database
	Always []string     // units that run on every node
	Leader []string     // units that run on the active node once it is ready

	Poster   Poster
	Views    Views
	Database Database // not needed by a runner
	Units    Units
	Files    func() (cluster.FilesReport, error) // reads files.json

	// Disk writes to the disk of the database, durably, and returns how many
	// bytes are free for PostgreSQL there. It may hang, and is then not called
	// again before it returns. Not needed by a runner.
	Disk func() (free int64, err error)
	// Storage tells the other daemons what came of it. Not needed by a runner.
	Storage func(cluster.StorageReport) error

	Logger *slog.Logger
}

// situation is what the checks are judged against.
type situation struct {
	view    cluster.View
	known   bool      // a view has been seen since the start
	changed time.Time // when the assignment or the leader last changed
}

type runner struct {
	Options
	now     atomic.Pointer[situation]
	checks  map[cluster.Check]*check
	again   chan struct{} // registration is in doubt
	revived chan struct{} // the database answers again
	online  reach
}

// Run measures and posts until ctx ends; then it returns nil. The checks stay
// registered, so that a restart within their TTL goes unnoticed. It returns an
// error only for options that are not complete.
func Run(ctx context.Context, o Options) error {
	if err := o.complete(); err != nil {
		return err
	}
	r := newRunner(o)
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { r.watch(ctx) })

	registered := make(chan struct{})
	all.Go(func() { r.register(ctx, registered) })
	select {
	case <-registered:
	case <-ctx.Done():
		return nil
	}
	for _, c := range r.checks {
		all.Go(func() { r.loop(ctx, c) })
	}
	if o.Kind == cluster.Manager {
		all.Go(func() { r.hold(ctx) })
	}
	all.Go(func() { r.settle(ctx) })
	if events, ok := o.Units.(UnitEvents); ok {
		all.Go(func() { r.listen(ctx, events) })
	}
	<-ctx.Done()
	return nil
}

func (o Options) complete() error {
	switch {
	case o.Node == "" || o.Poster == nil || o.Views == nil || o.Units == nil || o.Files == nil || o.Logger == nil:
		return errors.New("check-runner: options are not complete")
	case o.Kind != cluster.Manager && o.Kind != cluster.Runner:
		return errors.New("check-runner: the kind of the node is neither manager nor runner")
	case o.Kind == cluster.Manager && (o.Database == nil || o.Disk == nil || o.Storage == nil):
		return errors.New("check-runner: a manager needs a database and its disk")
	}
	return nil
}

func newRunner(o Options) *runner {
	r := &runner{
		Options: o,
		checks:  map[cluster.Check]*check{},
		again:   make(chan struct{}, 1),
		revived: make(chan struct{}, 1),
		online:  reach{log: o.Logger},
	}
	r.now.Store(&situation{})
	for name, measure := range r.measurements() {
		r.checks[name] = &check{
			name:    name,
			measure: measure,
			kick:    make(chan struct{}, 1),
			log:     o.Logger.With("check", string(name)),
		}
	}
	return r
}

// options are those in force for this node: the defaults, until a view is seen.
func (r *runner) options() cluster.Options { return r.now.Load().view.Options(r.Node) }

// ttl is a check's TTL with check_ttl_multiplier.
func (r *runner) ttl(name cluster.Check) time.Duration {
	return r.options().Stretch(cluster.Checks()[name])
}

// kick has checks measured without delay.
func (r *runner) kick(names ...cluster.Check) {
	for _, name := range names {
		if c, ok := r.checks[name]; ok {
			signal(c.kick)
		}
	}
}

// signal wakes the one who waits for ch; a second signal before that is one.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// watch keeps the situation up to date.
func (r *runner) watch(ctx context.Context) {
	for ctx.Err() == nil {
		err := r.Views.Watch(ctx, func(v cluster.View) {
			r.online.report(ctx, "watch", nil)
			r.see(v)
		})
		r.online.report(ctx, "watch", err)
		pause(ctx, nil, retryEvery)
	}
}

// see takes in a view and wakes whom it concerns.
func (r *runner) see(v cluster.View) {
	before := r.now.Load()
	after := &situation{view: v, known: true, changed: before.changed}
	moved := before.known && (before.view.NextMaster.Epoch != v.NextMaster.Epoch ||
		before.view.NextMaster.Node != v.NextMaster.Node || !sameLeader(before.view.Leader, v.Leader))
	if moved || !before.known {
		after.changed = time.Now()
	}
	r.now.Store(after)
	if moved || !before.known {
		r.kick(cluster.CheckRole, cluster.CheckServices)
	}
	was, is := before.view.Options(r.Node), v.Options(r.Node)
	if was.Get("check_ttl_multiplier") != is.Get("check_ttl_multiplier") {
		signal(r.again)
		r.kick(slices.Collect(maps.Keys(r.checks))...)
	}
}

func sameLeader(a, b cluster.Leader) bool {
	return a.Node == b.Node && a.Epoch == b.Epoch && a.Held == b.Held && a.Ready == b.Ready
}

// register keeps the checks registered: at first, when a TTL changes, when a post has
// failed, because the agent may have lost them, and when the servers have not been told.
func (r *runner) register(ctx context.Context, first chan struct{}) {
	for ctx.Err() == nil {
		ttls := map[cluster.Check]time.Duration{}
		for name := range r.checks {
			ttls[name] = r.ttl(name)
		}
		call, cancel := context.WithTimeout(ctx, postLimit)
		err := r.Poster.Register(call, ttls)
		cancel()
		r.online.report(ctx, "register", err)
		if err != nil {
			pause(ctx, nil, retryEvery)
			continue
		}
		if first != nil {
			close(first)
			first = nil
		}
		select {
		case <-ctx.Done():
		case <-r.again:
		}
	}
}

// settle sees to it that the servers learn what the agent knows. One look that finds
// a difference may have come in between a post and its way to the servers.
func (r *runner) settle(ctx context.Context) {
	untold := false
	for ctx.Err() == nil {
		every := settleEvery
		if untold {
			every = settleAgain
		}
		pause(ctx, nil, every)
		call, cancel := context.WithTimeout(ctx, postLimit)
		told, err := r.Poster.Told(call)
		cancel()
		again := untold
		untold = err == nil && !told
		if again && untold {
			r.Logger.Info("the servers have not been told of a check; registering again")
			signal(r.again)
			untold = false // it is given its time
		}
	}
}

// hold keeps an idle connection to the database. In the moment in which it is
// lost, all checks of the database are measured.
func (r *runner) hold(ctx context.Context) {
	delay := retrySoon
	for ctx.Err() == nil {
		start := time.Now()
		err := r.Database.Hold(ctx)
		if ctx.Err() != nil {
			return
		}
		r.kick(cluster.CheckPort, cluster.CheckAnswer, cluster.CheckRole)
		held := time.Since(start)
		if held >= heldWell {
			delay = retrySoon
			r.Logger.Info("lost the connection to the database", "held", held.Round(time.Millisecond), "error", err)
		} else {
			r.Logger.Debug("no connection to the database", "error", err, "retry_in", delay)
		}
		pause(ctx, r.revived, delay)
		delay = min(2*delay, r.ttl(cluster.CheckAnswer)/3)
	}
}

// listen has the services measured when a unit changes.
func (r *runner) listen(ctx context.Context, events UnitEvents) {
	for ctx.Err() == nil {
		err := events.Events(ctx, func(string) { r.kick(cluster.CheckServices) })
		if err != nil && ctx.Err() == nil {
			r.Logger.Debug("no events from the unit manager", "error", err)
		}
		pause(ctx, nil, retryEvery)
	}
}

// pause waits for d, for a signal on wake, or for the end of ctx.
func pause(ctx context.Context, wake <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-wake:
	case <-timer.C:
	}
}
