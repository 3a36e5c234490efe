package checkrunner

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

type post struct {
	at     time.Duration // since the start
	ok     bool
	output string
}

// agent is a Consul agent by hand.
type agent struct {
	mu         sync.Mutex
	start      time.Time
	down       error
	registered []map[cluster.Check]time.Duration
	posts      map[cluster.Check][]post
	untold     bool // until registered again
}

func (a *agent) Register(_ context.Context, ttls map[cluster.Check]time.Duration) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down == nil {
		a.registered, a.untold = append(a.registered, maps.Clone(ttls)), false
	}
	return a.down
}

func (a *agent) Told(context.Context) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.untold, a.down
}

func (a *agent) Post(_ context.Context, c cluster.Check, ok bool, output string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down == nil {
		a.posts[c] = append(a.posts[c], post{time.Since(a.start), ok, output})
	}
	return a.down
}

func (a *agent) since(c cluster.Check, from time.Duration) (out []post) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.posts[c] {
		if p.at >= from {
			out = append(out, p)
		}
	}
	return out
}

// views hands over what is put into it.
type views chan cluster.View

func (v views) Watch(ctx context.Context, changed func(cluster.View)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case view := <-v:
			changed(view)
		}
	}
}

// database is a PostgreSQL server by hand.
type database struct {
	mu     sync.Mutex
	refuse error
	hang   bool
	role   Role
	lost   chan struct{} // closed: the held connection is gone
}

func (d *database) probe(ctx context.Context) error {
	d.mu.Lock()
	refuse, hang := d.refuse, d.hang
	d.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return refuse
}

func (d *database) Ping(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.refuse
}

func (d *database) Select1(ctx context.Context) error { return d.probe(ctx) }

func (d *database) Role(ctx context.Context) (Role, error) {
	err := d.probe(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.role, err
}

func (d *database) Hold(ctx context.Context) error {
	d.mu.Lock()
	refuse, lost := d.refuse, d.lost
	d.mu.Unlock()
	if refuse != nil {
		return refuse
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-lost:
		return errors.New("unexpected EOF")
	}
}

func (d *database) die() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse = errors.New("connection refused")
	close(d.lost)
}

func (d *database) rise() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse, d.lost = nil, make(chan struct{})
}

// units is a unit manager by hand, with events.
type units struct {
	mu      sync.Mutex
	state   map[string]cluster.Tri
	hang    bool
	changes chan string
}

func (u *units) State(ctx context.Context, unit string) (cluster.Tri, string, error) {
	u.mu.Lock()
	state, hang := u.state[unit], u.hang
	u.mu.Unlock()
	if hang {
		<-ctx.Done()
		return cluster.Unknown, "", ctx.Err()
	}
	return state, "seen", nil
}

func (u *units) Events(ctx context.Context, changed func(string)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case unit := <-u.changes:
			changed(unit)
		}
	}
}

func (u *units) set(unit string, s cluster.Tri) {
	u.mu.Lock()
	u.state[unit] = s
	u.mu.Unlock()
}

var (
	_ Poster     = (*agent)(nil)
	_ Views      = views(nil)
	_ Database   = (*database)(nil)
	_ Units      = (*units)(nil)
	_ UnitEvents = (*units)(nil)
)

// bench is a healthy standby, node2 of three, with its check-runner running.
type bench struct {
	Options
	agent    *agent
	views    views
	database *database
	disk     *disk
	units    *units
}

func healthyStandby() *bench {
	s, role := followingTrio()
	b := &bench{
		agent:    &agent{start: time.Now(), posts: map[cluster.Check][]post{}},
		views:    make(views, 1),
		database: &database{role: role, lost: make(chan struct{})},
		disk:     &disk{free: 10 << 30},
		units: &units{state: map[string]cluster.Tri{"web.service": cluster.Yes, "worker.service": cluster.Yes},
			changes: make(chan string)},
	}
	b.views <- s.view
	b.Options = Options{
		Node: "node2", Kind: cluster.Manager,
		Always: []string{"web.service"}, Leader: []string{"worker.service"},
		Poster: b.agent, Views: b.views, Database: b.database, Units: b.units,
		Files: func() (cluster.FilesReport, error) {
			return cluster.FilesReport{Complete: cluster.Yes, At: time.Now()}, nil
		},
		Disk: b.disk.look, Storage: b.disk.report,
		Logger: slog.New(slog.DiscardHandler),
	}
	return b
}

// during runs check-runner in a bubble while f goes on.
func during(t *testing.T, prepare func(*bench), f func(*bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := healthyStandby()
		prepare(b)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- Run(ctx, b.Options) }()
		f(b)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

func asIs(*bench) {}

// wait lets d of the bubble's time pass and all that is due happen.
func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func withOptions(v cluster.View, o cluster.Options) cluster.View {
	v.Info = &cluster.Info{Options: o}
	return v
}
