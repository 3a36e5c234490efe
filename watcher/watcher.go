package watcher

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/statefile"
)

// Prober asks another manager directly, without Consul.
type Prober interface {
	// Ping returns nil if the node answered as a member of this cluster. An
	// error wraps what the network said, such as syscall.ECONNREFUSED.
	Ping(ctx context.Context, node cluster.Node) error
}

// Raft tells of Consul's own leader and moves it.
type Raft interface {
	// LeaderHeard asks the local agent when the leader last reached its server.
	// known is false if the agent knows of no leader; it knows of one for a while
	// after that has gone. An error means that it gave no sensible answer.
	LeaderHeard(ctx context.Context) (at time.Time, known bool, err error)
	// Leader names the node whose server leads; ok is false if there is none.
	Leader(ctx context.Context) (node string, ok bool, err error)
	// Transfer hands the leadership to the server on a node.
	Transfer(ctx context.Context, toNode string) error
}

// Gossip is the local Consul agent's own view of which agents live.
type Gossip interface {
	// Failed names the members that the agent has lost and still looks for.
	Failed(ctx context.Context) ([]string, error)
	// Join has the agent speak to the one at an IP, so that both know each
	// other as alive.
	Join(ctx context.Context, address string) error
}

// Views tells the state of the cluster.
type Views interface {
	// Watch calls back with the present view, then after every change, until
	// ctx ends. It returns early with an error when the registry cannot be
	// read; it is then called again.
	Watch(ctx context.Context, changed func(cluster.View)) error
}

// Pinger finds out whether a host outside the cluster can be reached: Yes or No,
// or Unknown if that cannot be told.
type Pinger interface {
	Reach(ctx context.Context, host netip.Addr) cluster.Tri
}

// Options are what Run works with. All are required but where it says so.
type Options struct {
	Node    string
	Verdict string // file that the verdict is written to
	Members string // file that remembers the members, for a restart without Consul

	Views   Views
	Prober  Prober
	Raft    Raft
	Gossip  Gossip
	Pinger  Pinger                    // nil: ICMP echo
	Gateway func() (netip.Addr, bool) // the default gateway; nil: the kernel's routing table

	Logger *slog.Logger
}

// Times before check_ttl_multiplier.
const (
	probeEvery = 500 * time.Millisecond
	probeLimit = time.Second
	// freshFor is how long a result is believed: three rounds, and one that
	// ran into its limit.
	freshFor = 3*probeEvery + probeLimit
	// calmFor is how long nothing must have changed before the Raft leader is
	// moved: a change of leader costs Consul a moment without one.
	calmFor = 1500 * time.Millisecond
)

const (
	writeEvery = time.Second // how often the verdict is written at least
	retryEvery = time.Second // a registry that cannot be read
	lostAfter  = 3           // pings in a row without an answer; so many are under way at most
)

// membership is what a node must know of the others to judge without Consul.
type membership struct {
	Managers []cluster.Node  `json:"managers"`
	Options  cluster.Options `json:"options"` // in force for this node
}

type watcher struct {
	Options
	wake chan struct{}
	busy sync.WaitGroup // probes under way

	rounds int // of probes

	mu       sync.Mutex // guards what follows; never held over a call
	members  membership
	inFlight map[string]bool
	contacts map[string]cluster.Contact
	raft     raftSeen
	outside  map[netip.Addr]outsideSeen
	gateway  netip.Addr // the last one that was known
	active   activeSeen
	verdict  cluster.Judgement
	moves    moves
}

// raftSeen is the latest answer about Consul's leader.
type raftSeen struct {
	has  cluster.Tri
	node string // asked for on the active node alone
	at   time.Time
	from time.Time // since when it has been this node

	heard time.Time // when the leader last reached the agent's server
}

// activeSeen is whether this node is the active one, or about to be.
type activeSeen struct {
	self bool
	from time.Time // when the assignment or the leader last changed
	key  cluster.Assignment
	held cluster.Leader
}

// Run probes, judges and writes until ctx ends; then it returns nil. The last
// verdict stays in its file and grows old there. Run returns an error only for
// options that are not complete.
func Run(ctx context.Context, o Options) error {
	if o.Node == "" || o.Verdict == "" || o.Members == "" || o.Views == nil || o.Prober == nil || o.Raft == nil || o.Gossip == nil || o.Logger == nil {
		return errors.New("consul-watcher: options are not complete")
	}
	w := newWatcher(o)
	w.recall()
	var all sync.WaitGroup
	all.Go(func() { w.watch(ctx) })
	all.Go(func() { w.probe(ctx) })
	all.Go(func() { w.gossip(ctx) })
	w.judge(ctx)
	all.Wait()
	w.busy.Wait()
	return nil
}

func newWatcher(o Options) *watcher {
	if o.Pinger == nil {
		o.Pinger = echo{}
	}
	if o.Gateway == nil {
		o.Gateway = defaultGateway
	}
	return &watcher{
		Options:  o,
		wake:     make(chan struct{}, 1),
		inFlight: map[string]bool{},
		contacts: map[string]cluster.Contact{},
		outside:  map[netip.Addr]outsideSeen{},
	}
}

// recall takes up what was known before a restart: the members, and a verdict
// that the other daemons still believe.
func (w *watcher) recall() {
	members, err := statefile.Read[membership](w.Members)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.Logger.Warn("the members are not remembered", "error", err)
	}
	w.members = members
	report, err := statefile.Read[cluster.VerdictReport](w.Verdict)
	now := time.Now()
	if age := now.Sub(report.At); err == nil && age >= 0 && age < config.StaleAfter {
		w.verdict = cluster.Resume(report, now, members.Options.Duration("minority_after"))
	}
}

// watch keeps the members up to date.
func (w *watcher) watch(ctx context.Context) {
	for ctx.Err() == nil {
		if err := w.Views.Watch(ctx, w.see); err != nil && ctx.Err() == nil {
			w.Logger.Debug("the cluster's state cannot be watched", "error", err)
		}
		pause(ctx, nil, retryEvery)
	}
}

func (w *watcher) see(v cluster.View) {
	members := membership{Options: v.Options(w.Node)}
	for _, name := range v.Managers() {
		members.Managers = append(members.Managers, v.Nodes[name])
	}
	w.mu.Lock()
	changed := !sameMembers(w.members, members)
	if v.Info != nil {
		w.members = members
	}
	key, held := v.NextMaster, v.Leader
	if w.active.from.IsZero() || key.Node != w.active.key.Node || key.Epoch != w.active.key.Epoch ||
		held.Node != w.active.held.Node || held.Held != w.active.held.Held || held.Ready != w.active.held.Ready {
		w.active.from = time.Now()
	}
	w.active.key, w.active.held = key, held
	w.active.self = key.Node == w.Node || held.Held && held.Node == w.Node
	w.mu.Unlock()

	if changed && v.Info != nil {
		if err := statefile.Write(w.Members, members); err != nil {
			w.Logger.Error("the members cannot be kept for a restart", "error", err)
		}
	}
}

func sameMembers(a, b membership) bool {
	return maps.Equal(a.Options, b.Options) && slices.EqualFunc(a.Managers, b.Managers, func(x, y cluster.Node) bool {
		return x.Name == y.Name && x.Address == y.Address && x.Ports == y.Ports && x.Fingerprint == y.Fingerprint
	})
}

// judge writes the verdict at every change, and often enough to be believed.
// Before the first round of probes has ended it leaves the file alone, so that
// a restart goes unnoticed.
func (w *watcher) judge(ctx context.Context) {
	w.firstRound(ctx)
	var written time.Time
	var failing bool
	for ctx.Err() == nil {
		now := time.Now()
		before, j := w.decide(now)
		if before.Verdict != j.Verdict {
			w.Logger.Info("verdict changed", "from", before.Verdict, "to", j.Verdict, "reason", j.Reason,
				"reached", j.Reached, "missing", j.Missing)
		}
		if !j.Same(before) || now.Sub(written) >= writeEvery {
			err := statefile.WriteMode(w.Verdict, j.Report(now), 0o644)
			if err == nil {
				written = now
			} else if !failing {
				w.Logger.Error("the verdict cannot be written", "error", err)
			}
			failing = err != nil
		}
		next := writeEvery
		if !j.Due.IsZero() {
			next = min(next, time.Until(j.Due))
		}
		pause(ctx, w.wake, next)
	}
}

// firstRound waits until every probe has a result, or for two of their limits.
func (w *watcher) firstRound(ctx context.Context) {
	end := time.Now().Add(w.stretch(2 * probeLimit))
	for ctx.Err() == nil && time.Now().Before(end) && !w.allHeard() {
		pause(ctx, w.wake, probeEvery)
	}
}

func (w *watcher) allHeard() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.members.Managers {
		if _, ok := w.contacts[n.Name]; !ok && n.Name != w.Node {
			return false
		}
	}
	return len(w.members.Managers) > 0 && !w.raft.at.IsZero()
}

// decide judges what is known at the moment.
func (w *watcher) decide(now time.Time) (before, after cluster.Judgement) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := w.members.Options
	fresh := o.Stretch(freshFor)
	c := cluster.Connectivity{
		Self:        w.Node,
		LeaderHeard: w.raft.heard,
		Contacts:    maps.Clone(w.contacts),
		Fresh:       fresh,
	}
	c.Outside, c.Asking = w.outsidePoints(now, fresh)
	for _, n := range w.members.Managers {
		c.Managers = append(c.Managers, n.Name)
	}
	if now.Sub(w.raft.at) <= fresh {
		c.RaftLeader = w.raft.has
	}
	before = w.verdict
	w.verdict = c.Judge(now, o.Duration("minority_after"), before)
	return before, w.verdict
}

func (w *watcher) stretch(d time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.members.Options.Stretch(d)
}

// jitter spreads the probes of several nodes: d, give or take a tenth.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
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
