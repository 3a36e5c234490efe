package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"syscall"
	"time"

	"github.com/understudy-ha/understudy/api"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/deadman"
	"github.com/understudy-ha/understudy/handlerrunner"
	"github.com/understudy-ha/understudy/membership"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/pgrepl/helper"
	"github.com/understudy-ha/understudy/registry"
)

// adapters is everything that the handler of this host works with.
type adapters struct {
	host    *node.Host
	reg     *registry.Client
	pg      *helper.Client // nil on a runner
	peers   *api.Client
	journal *journal
	cutOff  chan struct{} // signalled when the watcher finds that this node is
}

func open(h *node.Host) (*adapters, error) {
	a := &adapters{host: h, cutOff: make(chan struct{}, 1)}
	var err error
	if a.reg, err = h.Registry(); err != nil {
		return nil, err
	}
	if h.Record.Node.Kind == cluster.Manager {
		a.pg = h.Helper()
	}
	if a.peers, err = h.Peers(); err != nil {
		return nil, err
	}
	a.journal = newJournal(a.reg, h.Record.Node.Name, h.Log)
	return a, nil
}

func (a *adapters) options() handlerrunner.Options {
	c := a.host.Config
	return handlerrunner.Options{
		Node: a.host.Record.Node.Name, Kind: a.host.Record.Node.Kind, Version: node.Version,
		State: a.host.Layout.Handler(), Known: a.host.Layout.Known(),
		Store: store{a}, Locks: locks{a}, Postgres: postgres{a.pg}, Replication: replication{a},
		Directory: directory{a}, Divergence: losses{a}, Units: units{a.host.Units()}, Peers: a.peers, Parts: parts{a.peers}, Journal: a.journal,
		Verdict: a.host.Verdict, Storage: a.host.Storage,
		Files: func() cluster.FilesReport {
			f, err := a.host.Files()
			if err != nil {
				return cluster.FilesReport{}
			}
			return f
		},
		Hold:         a.hold,
		Checkpoint:   a.pg.Checkpoint,
		Failing:      a.failing,
		Depart:       func(ctx context.Context) error { return membership.Depart(ctx, a.host, a.reg) },
		PostgresUnit: c.Postgres.Unit, AlwaysUnits: c.Services.Always, LeaderUnits: c.Services.Leader,
		Log: a.host.Log,
	}
}

// announcer names this node in DNS, by its role.
func (a *adapters) announcer(h *handlerrunner.Handler) *announcer {
	n := a.host.Record.Node
	ttl := func() time.Duration { return h.View().Options(n.Name).Stretch(roleTTL) }
	return &announcer{
		role: h.Role, keep: a.reg.KeepAnnounced, ttl: ttl, log: a.host.Log,
		announce: func(ctx context.Context, r cluster.Role) error {
			return a.reg.Announce(ctx, n.Name, r, n.Ports.Postgres, ttl())
		},
	}
}

// hold tells consul-watcher until when PostgreSQL may be open.
func (a *adapters) hold(until time.Time) {
	s := deadman.Switch(a.host.Layout.Lease())
	err := s.Release()
	if !until.IsZero() {
		err = s.Hold(until)
	}
	if err != nil {
		a.host.Log.Error("nobody ends PostgreSQL should this process freeze", "error", err)
	}
}

// failing reads which checks of a node fail in Consul.
func (a *adapters) failing(ctx context.Context, node string) (map[string]string, error) {
	all, err := a.reg.Health(ctx)
	if err != nil {
		return nil, err
	}
	fails := map[string]string{}
	for name, check := range all[node] {
		if !check.OK {
			fails[name] = check.Output
		}
	}
	return fails, nil
}

// parts are the peers, asked about a part of the cluster.
type parts struct{ *api.Client }

func (p parts) Claim(ctx context.Context, n cluster.Node, a cluster.Answer) error {
	err := p.Client.Claim(ctx, n, a)
	var refused *api.Error
	if errors.As(err, &refused) && refused.Code == api.CodeKept {
		return kept(refused.Message)
	}
	return err
}

// kept is handlerrunner.ErrKept in the words of the node that said it.
type kept string

func (k kept) Error() string        { return string(k) }
func (k kept) Is(target error) bool { return target == handlerrunner.ErrKept }

// losses keeps and exports what a losing side wrote.
type losses struct{ *adapters }

func (d losses) LastCommit(ctx context.Context, after cluster.LSN) (cluster.LastWrite, error) {
	at, _, err := d.pg.LastCommit(ctx, after)
	return cluster.LastWrite{At: at, Clock: time.Now()}, err
}

func (d losses) SkipTimelines(ctx context.Context, n int) error {
	return d.pg.SkipTimelines(ctx, n)
}

func (d losses) Keep(ctx context.Context, confirmed cluster.LSN) error {
	return errors.Join(d.pg.KeepDivergence(ctx), d.pg.AdvanceDivergence(ctx, confirmed))
}

func (d losses) Export(ctx context.Context, epoch cluster.Epoch, fork cluster.LSN, wrote []cluster.Timeline) error {
	r := d.host.Record
	q := pgrepl.ExportRequest{Cluster: r.Info.ID, Epoch: epoch, Fork: fork, Wrote: wrote}
	s, err := d.pg.Export(ctx, q)
	if err != nil && ctx.Err() == nil {
		var kept error
		if s, kept = d.pg.SetAside(ctx, q, err); kept != nil {
			return errors.Join(err, kept)
		}
		err = fmt.Errorf("%w: %w", handlerrunner.ErrSetAside, err)
	}
	if s.ID != "" {
		d.journal.Write(cluster.EventDivergence, epoch, fmt.Sprintf("%s keeps what only it had: 'understudy divergence show %s'", r.Node.Name, s.ID), s)
	}
	return err
}

// askAgain is the pause before the unit manager is asked anew to tell of a shutdown.
const askAgain = 5 * time.Second

// awaitShutdown lets the handler retire before the host goes down. That the
// daemon itself is stopped is no reason to hand over.
func (a *adapters) awaitShutdown(ctx context.Context, h *handlerrunner.Handler) error {
	for {
		err := a.host.Units().OnShutdown(ctx, h.Retire)
		if ctx.Err() == nil {
			a.host.Log.Warn("a shutdown of the host would be a failover", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(askAgain):
		}
	}
}

// store is the registry, as long as it holds this host's cluster.
type store struct{ *adapters }

func (s store) Watch(ctx context.Context, see func(cluster.View, bool)) error {
	return rewatch(ctx, s.cutOff, func(ctx context.Context) error { return s.watch(ctx, see) }, func() { see(cluster.View{}, false) })
}

func (s store) watch(ctx context.Context, see func(cluster.View, bool)) error {
	return s.reg.Watch(ctx, func(v cluster.View) {
		err := node.SameCluster(s.host.Record, v)
		if err != nil {
			s.host.Log.Error("registry", "error", err)
		}
		s.reconfigure(v)
		see(v, err == nil)
	}, func(err error) {
		s.host.Log.Debug("registry", "error", err)
		see(cluster.View{}, false)
	})
}

// reconfigure keeps the options where what starts before the registry can be read
// finds them: the record, and Consul's configuration.
func (s store) reconfigure(v cluster.View) {
	now, rec := v.Options(s.host.Record.Node.Name), &s.host.Record
	if v.Info == nil || maps.Equal(now, rec.Options()) {
		return
	}
	info, own := v.Info.Options, v.Nodes[rec.Node.Name].Options
	err := node.UpdateRecord(s.host.Layout.Membership(), func(r *node.Record) error {
		if !r.Member {
			return node.ErrUnfinished
		}
		r.Info.Options, r.Node.Options = info, own
		return nil
	})
	if errors.Is(err, node.ErrUnfinished) {
		return // the next view brings it
	}
	rec.Info.Options, rec.Node.Options = info, own
	if err == nil {
		err = membership.ConfigureConsul(s.host)
	}
	s.host.Log.Info("options changed", "options", now, "error", err)
}

func (s store) View(ctx context.Context) (cluster.View, error) {
	v, err := s.reg.View(ctx)
	if err == nil {
		err = node.SameCluster(s.host.Record, v)
	}
	return v, err
}

func (s store) SetNextMaster(ctx context.Context, seen cluster.View, n cluster.Assignment) (bool, error) {
	return s.reg.SetNextMaster(ctx, seen, n)
}

func (s store) SetSync(ctx context.Context, session string, index uint64, set cluster.SyncSet) (bool, error) {
	return s.reg.SetSync(ctx, session, index, set)
}

// locks gives out the leader lock.
type locks struct{ *adapters }

func (l locks) Fit(ctx context.Context) error { return unfit(l.reg.Fit(ctx, cluster.SessionChecks())) }

func (l locks) Renew(ctx context.Context, session string) error {
	return gone(l.reg.Renew(ctx, session))
}

func (l locks) Acquire(ctx context.Context, v cluster.Leader, ttl time.Duration, bound bool) (handlerrunner.Lease, error) {
	var checks []cluster.Check
	if bound {
		checks = cluster.SessionChecks()
	}
	lease, err := l.reg.Acquire(ctx, v, ttl, checks)
	if err != nil {
		return nil, unfit(err)
	}
	return held{lease}, nil
}

func (l locks) Adopt(ctx context.Context, epoch cluster.Epoch) (handlerrunner.Lease, error) {
	lease, err := l.reg.Adopt(ctx, l.host.Record.Node.Name, epoch)
	if err != nil {
		return nil, gone(err)
	}
	return held{lease}, nil
}

type held struct{ *registry.Lease }

func (h held) Renew(ctx context.Context) error { return gone(h.Lease.Renew(ctx)) }

func (h held) Bind(ctx context.Context) error { return h.Lease.Bind(ctx, cluster.SessionChecks()) }

func unfit(err error) error {
	if errors.Is(err, registry.ErrCheckFailing) {
		return fmt.Errorf("%w: %w", handlerrunner.ErrUnfit, err)
	}
	return err
}

func gone(err error) error {
	if errors.Is(err, registry.ErrSessionGone) {
		return fmt.Errorf("%w: %w", handlerrunner.ErrSessionGone, err)
	}
	return err
}

// postgres is the local server, in the handler's words.
type postgres struct{ *helper.Client }

func (p postgres) Observe(ctx context.Context) (handlerrunner.Database, error) {
	o := p.Client.Observe(ctx)
	d := handlerrunner.Database{
		Primary: o.Primary, Position: o.Position, SystemID: o.SystemID,
		Upstream: o.Upstream, Streaming: o.Streaming(), Seen: o.UpstreamEnd, Ahead: o.Ahead,
	}
	switch o.State {
	case pgrepl.StateUp:
		d.Running = cluster.Yes
	case pgrepl.StateDown:
		d.Running = cluster.No
	}
	if o.Quorum != nil {
		d.InEffect = *o.Quorum
	}
	if d.Streaming && o.UpstreamEnd > o.Replayed {
		d.Lag = int64(o.UpstreamEnd - o.Replayed)
	}
	for _, r := range o.Replicas {
		if r.State == "streaming" {
			d.Standbys = append(d.Standbys, handlerrunner.Downstream{Name: r.Name, Flushed: r.Flushed})
		}
	}
	if o.State != pgrepl.StateUp {
		return d, fmt.Errorf("PostgreSQL is %s: %s", o.State, o.Problem)
	}
	return d, nil
}

// replication moves the local server between upstreams.
type replication struct{ *adapters }

func (r replication) Detach(ctx context.Context) (cluster.Position, error) {
	pos, err := r.pg.Detach(ctx)
	if errors.Is(err, pgrepl.ErrNotRunning) {
		err = fmt.Errorf("%w: %w", handlerrunner.ErrNotRunning, err)
	}
	return pos, err
}

func (r replication) Follow(ctx context.Context, up cluster.Upstream) error {
	return r.pg.Follow(ctx, r.host.Upstream(up))
}

func (r replication) Slots(ctx context.Context, t cluster.Tenure, nodes []string) error {
	return r.pg.EnsureSlots(ctx, t, nodes)
}

func (r replication) History(ctx context.Context, tl cluster.Timeline) (cluster.History, error) {
	return r.pg.History(ctx, tl)
}

// directory is the local data directory.
type directory struct{ *adapters }

func (d directory) Complete(ctx context.Context) (bool, error) { return d.pg.Complete(ctx) }

func (d directory) Final(ctx context.Context) (cluster.Position, error) {
	c, err := d.pg.ControlData(ctx)
	if err != nil {
		return cluster.Position{}, err
	}
	if c.State != "shut down" {
		return cluster.Position{}, fmt.Errorf("PostgreSQL was not shut down cleanly: it is %q", c.State)
	}
	return cluster.Position{Timeline: c.Timeline, LSN: c.Checkpoint}, nil
}

func (d directory) Rewind(ctx context.Context, source cluster.Upstream) error {
	return d.pg.Rewind(ctx, d.host.Upstream(source), d.progress("rewind"))
}

func (d directory) Clone(ctx context.Context, source cluster.Upstream, progress func(string)) error {
	return d.pg.Clone(ctx, d.host.Upstream(source), progress)
}

func (d directory) progress(what string) func(string) {
	return func(s string) { d.host.Log.Info(what, "progress", s) }
}

// units is the unit manager, in the handler's words.
type units struct{ node.Units }

func (u units) Kill(ctx context.Context, unit string) error {
	return u.Units.Kill(ctx, unit, syscall.SIGKILL)
}

func (u units) Running(ctx context.Context, unit string) (cluster.Tri, error) {
	s, err := u.State(ctx, unit)
	return s.Active, err
}
