package handlerrunner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

const (
	pgUnit     = "postgresql"
	alwaysUnit = "app"
	leaderUnit = "web"
)

// world is a cluster in memory: Handlers as they are, everything that they hold
// on to a fake, and a client that writes to whatever takes its writes. After
// every change it checks what must always hold.
type world struct {
	t      *testing.T
	dir    string
	ctx    context.Context // ends with the story
	cancel context.CancelFunc
	asked  sync.WaitGroup // operators that wait for an answer

	mu    sync.Mutex
	reg   *registry
	hosts map[string]*host
	names []cluster.Assignment // all that electors wanted to name
	notes []note

	events []cluster.Event
	seen   map[string]bool // faults, each told once
	log    bytes.Buffer

	records int // grows downwards: WAL records that are no commits
	commits int
	acked   []int
	ackedBy map[string]time.Time // when each host last acknowledged a commit
	madeAt  map[int]time.Time    // by the clock of the host

	risky    []int // acknowledged in a minority: may end in an export
	exported []int // by a node that was rewound

	sim *simulation // not nil: a seed drives this world, and what is said of stories does not hold
}

type note struct{ node, text string }

// host is one machine of the world.
type host struct {
	w         *world
	name      string
	kind      cluster.Kind
	latency   time.Duration
	pg        *fakePG
	units     *fakeUnits
	verdict   cluster.Verdict
	departs   int
	dieAt     string // the kind of journal entry at which it loses power
	isolateAt string // the same, at which nobody reaches it any more

	dead     bool          // no power
	thaw     chan struct{} // not nil: everything on it stands still until it is closed
	isolated bool          // its network is gone
	mute     bool          // it cannot reach the registry
	expired  bool          // its agent takes the checks for failed
	part     string        // not empty: it reaches only the hosts of the same part
	idle     bool          // no client writes here
	fast     time.Duration // by so much its clock is; of commits only in simulations
	lag      time.Duration // between a change in the registry and its view of it

	handler *Handler
	stop    context.CancelFunc // of the handler
	done    chan struct{}
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir(), hosts: map[string]*host{}, seen: map[string]bool{}, ackedBy: map[string]time.Time{}, madeAt: map[int]time.Time{}}
	w.reg = newRegistry(w)
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

func (w *world) sorted() []string { return slices.Sorted(maps.Keys(w.hosts)) }

// note tells the transcript what happened on a node, or to the cluster.
func (w *world) note(node, format string, args ...any) {
	if w.sim != nil {
		w.sim.tell(node, format, args...)
		return
	}
	w.notes = append(w.notes, note{node, fmt.Sprintf(format, args...)})
}

// fault reports that what must always hold does not.
func (w *world) fault(format string, args ...any) {
	if w.sim != nil {
		w.sim.violate(format, args...)
		return
	}
	if text := fmt.Sprintf(format, args...); !w.seen[text] {
		w.seen[text] = true
		w.t.Errorf("at %s: %s", time.Now().Format("04:05.000"), text)
	}
}

// flow moves WAL, acknowledges commits, lets checks fail, and checks.
func (w *world) flow() {
	if w.sim != nil { // WAL takes its time there: see pump
		w.sim.check()
		return
	}
	for moved := true; moved; {
		moved = false
		for _, name := range w.sorted() {
			moved = w.hosts[name].pg.receive() || moved
		}
	}
	for name, h := range w.hosts {
		if acked := h.pg.acknowledge(); len(acked) > 0 {
			w.ackedBy[name] = time.Now()
			if h.verdict != cluster.Majority {
				w.risky = append(w.risky, acked...)
			} else {
				w.acked = append(w.acked, acked...)
			}
		}
	}
	w.reg.checks()
	w.check()
}

// check asserts the invariants of every moment.
func (w *world) check() {
	var active []string
	lock, sync := w.reg.view.Leader, w.reg.view.Sync
	for _, name := range w.sorted() {
		h := w.hosts[name]
		if h.handler != nil && !h.dead && h.handler.Mode() == cluster.MajorityMode {
			active = append(active, name)
		}
		if !h.pg.running || !h.pg.primary || !h.pg.gate {
			continue
		}
		if lock.Held && lock.Node == name && (sync.Leader != name || sync.Epoch != lock.Epoch) {
			w.fault("%s is open in epoch %d and the sync set is still that of epoch %d", name, lock.Epoch, sync.Epoch)
		}
		if lock.Held && lock.Node == name && h.handler != nil && h.handler.ownSide() != nil {
			w.fault("%s is open to the whole cluster and counts as the node of a part", name)
		}
		if sync.Leader == name && !sync.Covered(h.pg.quorum) {
			w.fault("%s waits for %s, which the published set %v does not cover", name, h.pg.quorum, sync)
		}
	}
	if len(active) > 1 {
		w.fault("%v are active at the same time", active)
	}
}

// checkData asserts that whoever takes writes holds all that was acknowledged,
// unless commits are not confirmed, and that those who stream from it have nothing else.
func (w *world) checkData() {
	for _, name := range w.sorted() {
		p := w.hosts[name].pg
		if p.running && p.primary && p.gate && w.reg.view.Leader.Node == name && w.reg.view.Leader.Ready {
			has := map[int]bool{}
			for _, r := range p.wal {
				has[r] = true
			}
			if i := slices.IndexFunc(w.acked, func(id int) bool { return !has[id] && !slices.Contains(w.exported, id) }); i >= 0 && w.reg.view.SyncMode() != cluster.Async {
				w.fault("commit %d was acknowledged and is not on %s", w.acked[i], name)
			}
		}
		if h := w.hosts[name]; h.handler != nil && w.reg.view.Leader.Node == name && w.reg.view.Leader.Ready && h.handler.Mode() == cluster.MajorityMode {
			if _, d, _ := h.handler.snapshot(); d.Side != nil {
				w.fault("%s is active and still thinks of a part that it has served", name)
			}
		}
		if s := p.source(); s != nil && !slices.Equal(p.wal, s.wal[:len(p.wal)]) {
			w.fault("%s streams from %s and has other WAL", name, s.h.name)
		}
	}
}

// client writes to every host that takes writes, one commit at a time.
func (w *world) client() {
	for sleep(w.ctx, 10*time.Millisecond) == nil {
		w.mu.Lock()
		for _, name := range w.sorted() {
			if h := w.hosts[name]; !h.idle && h.pg.commit(w.commits+1) {
				w.commits++
			}
		}
		w.flow()
		w.mu.Unlock()
	}
}

// add makes a machine that is a member. Its data directory is a clone of that of
// the active, if there is one. A runner has none that its handler could use.
func (w *world) add(name string, kind cluster.Kind) *host {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.hosts) + 1
	h := &host{w: w, name: name, kind: kind, verdict: cluster.Majority, latency: time.Millisecond + time.Duration(n)*137*time.Microsecond}
	h.pg = newPG(h)
	h.units = &fakeUnits{h, map[string]bool{}, map[string]bool{}, map[string]bool{}, 0, map[string]time.Duration{}, map[string]bool{}}
	for _, other := range w.hosts {
		if other.pg.running && other.pg.primary {
			h.pg.take(other.pg, other.pg.tenure)
		}
	}
	w.hosts[name] = h
	w.reg.view.Nodes[name] = cluster.Node{Name: name, Kind: kind, Address: name}
	if w.reg.view.NextMaster.Node == "" {
		w.reg.view.NextMaster = cluster.Assignment{Node: name, Epoch: 1, Reason: "the cluster is started on it"}
		w.reg.view.NextMasterIndex = w.reg.index + 1
	}
	w.reg.touch()
	return h
}

// start runs the handler of a host.
func (h *host) start() {
	log := slog.New(slog.NewTextHandler(&synced{w: h.w}, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", h.name)
	handler, err := New(Options{
		Node: h.name, Kind: h.kind, Version: "story", State: filepath.Join(h.w.dir, h.name+".json"),
		Store: &fakeStore{h}, Locks: &fakeLocks{h}, Postgres: h.pg, Replication: h.pg, Directory: h.pg, Units: h.units,
		Known: filepath.Join(h.w.dir, h.name+".view.json"),
		Peers: &fakePeers{h}, Parts: &fakePeers{h}, Divergence: &fakeDivergence{h}, Journal: &fakeJournal{h},
		Verdict:    h.report,
		Files:      func() cluster.FilesReport { return cluster.FilesReport{Complete: cluster.Yes} },
		Failing:    h.failing,
		Storage:    func() cluster.StorageReport { return cluster.StorageReport{Problem: h.pg.disk} },
		Checkpoint: h.pg.checkpoint,
		Hold:       func(time.Time) {},
		Depart: func(context.Context) error {
			h.w.mu.Lock()
			defer h.w.mu.Unlock()
			h.departs++
			h.w.note(h.name, "leaves Consul")
			return nil
		},
		PostgresUnit: pgUnit, AlwaysUnits: []string{alwaysUnit}, LeaderUnits: []string{leaderUnit}, Log: log,
	})
	if err != nil {
		h.w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	h.w.mu.Lock()
	h.dead, h.handler, h.stop, h.done = false, handler, cancel, done
	h.w.mu.Unlock()
	go func() {
		defer close(done)
		if err := handler.Run(ctx); err != nil {
			h.w.t.Errorf("handler of %s: %v", h.name, err)
		}
	}()
}

// halt ends the handler alone.
func (h *host) halt() {
	h.stop()
	<-h.done
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.handler = nil
}

// lose takes the power away. The caller holds the world's lock.
func (h *host) lose() {
	h.dead, h.dieAt, h.handler = true, "", nil
	h.pg.stop(false)
	clear(h.units.up)
	h.stop()
}

func (h *host) frozen() bool { return h.thaw != nil }

// speaks says that the host works and reaches the registry.
func (h *host) speaks() bool {
	if h.w.sim != nil {
		return h.w.sim.speaks(h)
	}
	return !h.dead && !h.frozen() && !h.isolated && !h.mute && h.part == ""
}

// reaches says that the network between two hosts works.
func (h *host) reaches(o *host) bool { return !h.isolated && !o.isolated && h.part == o.part }

// pause lets time pass on a host: none passes while it is frozen.
func (h *host) pause(ctx context.Context, d time.Duration) error {
	if h.w.sim != nil {
		return nil // it has passed already: see proc.enter
	}
	if err := sleep(ctx, d); err != nil {
		return err
	}
	for {
		h.w.mu.Lock()
		thaw, dead := h.thaw, h.dead
		h.w.mu.Unlock()
		switch {
		case dead:
			return errors.New("no power")
		case thaw == nil:
			return ctx.Err()
		}
		<-thaw
	}
}
