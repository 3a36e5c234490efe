package filesync

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/statefile"
)

// Registry is what Follow needs of the cluster's shared state.
type Registry interface {
	// Watch calls changed with every new state, the present one first, and
	// failed whenever the state cannot be read. It returns when ctx ends.
	Watch(ctx context.Context, changed func(cluster.View), failed func(error)) error
	// Files returns what the active node published last; ok is false where
	// nobody has yet.
	Files(ctx context.Context) (r cluster.FilesReport, ok bool, err error)
	// PublishFiles tells the others how far the active node has come.
	PublishFiles(ctx context.Context, r cluster.FilesReport) error
}

// The times of Follow.
const (
	reportEvery  = 2 * time.Second        // at least, so that a reader sees that it lives
	reportAtMost = 250 * time.Millisecond // between two reports
	askEvery     = time.Second            // what the active published
	callLimit    = 5 * time.Second        // of one call to the registry or the engine
)

// Follow keeps the engine in the role that the registry gives the node named
// self, and writes what the engine reports to file. It returns nil when ctx
// ends and an error when the engine stops by itself.
func Follow(ctx context.Context, e *Engine, reg Registry, self, file string, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := &follower{engine: e, reg: reg, self: self, file: file, log: log, plans: make(chan plan, 1)}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if err := reg.Watch(ctx, f.seen, f.blind); err != nil && ctx.Err() == nil {
			log.Error("watching the registry ended", "err", err)
		}
	}()
	defer func() { cancel(); <-watched }()
	return f.run(ctx)
}

type follower struct {
	engine *Engine
	reg    Registry
	self   string
	file   string
	log    *slog.Logger
	plans  chan plan // the latest, when it was not yet carried out

	want   plan // the latest
	now    plan // carried out
	told   cluster.FilesReport
	warned string
}

// plan is what a view asks of the engine.
type plan struct {
	role   Role
	epoch  cluster.Epoch
	active string
	peers  []Peer // nil: as they are
}

func (p plan) equal(q plan) bool {
	return p.role == q.role && p.epoch == q.epoch && p.active == q.active && slices.Equal(p.peers, q.peers)
}

// planFor reads a node's role from the shared state. Where nobody holds the
// leader lock the role is unknown: folders stay what they are.
func planFor(v cluster.View, self string) plan {
	if v.Info == nil || v.Nodes == nil {
		return plan{}
	}
	p := plan{peers: peersOf(v, self)}
	switch l := v.Leader; {
	case l.Held && l.Node == self:
		p.role, p.epoch = Sending, l.Epoch
	case v.NextMaster.Node == self && v.NextMaster.Epoch > l.Epoch:
		p.role, p.epoch = Preparing, v.NextMaster.Epoch
	case l.Held:
		p.role, p.epoch, p.active = Receiving, l.Epoch, l.Node
	}
	return p
}

// peersOf lists the other members that have a device, in order of their names.
func peersOf(v cluster.View, self string) []Peer {
	peers := []Peer{}
	for name, n := range v.Nodes {
		if _, gone := v.Removed[name]; gone || name == self || n.DeviceID == "" {
			continue
		}
		address := "tcp://" + net.JoinHostPort(n.Address, strconv.Itoa(n.Ports.FileSync))
		peers = append(peers, Peer{Name: name, Address: address, DeviceID: n.DeviceID})
	}
	slices.SortFunc(peers, func(a, b Peer) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return peers
}

// seen and blind replace the plan that is waiting: only the latest counts.
func (f *follower) seen(v cluster.View) { f.offer(planFor(v, f.self)) }

func (f *follower) blind(err error) {
	f.log.Debug("the registry cannot be read; folders stay as they are", "err", err)
	f.offer(plan{})
}

func (f *follower) offer(p plan) {
	select {
	case <-f.plans:
	default:
	}
	f.plans <- p // only Watch's goroutine sends, so there is room
}

func (f *follower) run(ctx context.Context) error {
	report := time.NewTimer(0)
	ask := time.NewTicker(askEvery)
	defer report.Stop()
	defer ask.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.engine.Done():
			return fmt.Errorf("file sync stopped: %w", f.engine.Close())
		case p := <-f.plans:
			f.want = p
			f.carryOut(ctx)
			report.Reset(0)
		case <-ask.C:
			f.carryOut(ctx) // where it failed before
			f.ask(ctx)
		case <-f.engine.Changed():
			report.Reset(max(0, reportAtMost-time.Since(last)))
		case <-report.C:
			last = time.Now()
			f.report(ctx)
			report.Reset(reportEvery - 50*time.Millisecond)
		}
	}
}

// carryOut brings the engine to the latest plan.
func (f *follower) carryOut(ctx context.Context) {
	p := f.want
	ctx, cancel := context.WithTimeout(ctx, 2*callLimit)
	defer cancel()
	if p.peers == nil {
		p.peers = f.now.peers
	}
	if p.equal(f.now) {
		return
	}
	// The role goes first: a node that is no longer active must not meet new
	// peers as a source.
	if err := f.engine.SetRole(ctx, p.role, p.epoch, p.active); err != nil {
		f.log.Error("cannot change role", "role", p.role.String(), "err", err)
		return
	}
	if p.peers != nil {
		if err := f.engine.SetPeers(ctx, p.peers); err != nil {
			f.log.Error("cannot change peers", "err", err)
			return
		}
	}
	f.now = p
	f.ask(ctx)
}

// ask learns how far the active node is. While it cannot, the last answer
// stays: it is right about the past.
func (f *follower) ask(ctx context.Context) {
	if f.now.role == Sending {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	r, ok, err := f.reg.Files(ctx)
	if err != nil {
		f.log.Debug("cannot read what the active published", "err", err)
	} else if ok {
		f.engine.SetPublished(r)
	}
}

func (f *follower) report(ctx context.Context) {
	r := f.engine.Report()
	if r.Problem != f.warned {
		f.warned = r.Problem
		if r.Problem != "" {
			f.log.Warn("folders are not in order", "problem", r.Problem)
		}
	}
	if err := statefile.WriteMode(f.file, r, 0o644); err != nil {
		f.log.Error("cannot write report", "err", err)
	}
	if !r.Sending || f.now.role != Sending || r.Complete == cluster.Unknown {
		return
	}
	same := r
	same.At = f.told.At
	if same == f.told {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if err := f.reg.PublishFiles(ctx, r); err != nil {
		f.log.Warn("cannot publish how far the files are", "err", err)
		return
	}
	f.told = r
}
