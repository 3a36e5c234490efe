package checkrunner_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/checkrunner"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/pgrepl/pgtest"
	"github.com/understudy-ha/understudy/registry"
	"github.com/understudy-ha/understudy/registry/registrytest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// consul gives check-runner what it needs of a real registry.
type consul struct {
	*registry.Client
	node string
}

func (c consul) Told(ctx context.Context) (bool, error) { return c.Client.Told(ctx, c.node) }

func (c consul) Register(ctx context.Context, ttls map[cluster.Check]time.Duration) error {
	return c.RegisterChecks(ctx, c.node, ttls)
}

func (c consul) Watch(ctx context.Context, changed func(cluster.View)) error {
	return c.Client.Watch(ctx, changed, nil)
}

// postgres gives it what it needs of a real server.
type postgres struct{ *pgrepl.Server }

func (p postgres) Role(ctx context.Context) (checkrunner.Role, error) {
	o := p.Observe(ctx)
	if o.State != pgrepl.StateUp {
		return checkrunner.Role{}, errors.New(o.Problem)
	}
	return checkrunner.Role{Primary: o.Primary, UpstreamHost: o.Upstream, Streaming: o.Streaming(),
		LagBytes: int64(o.UpstreamEnd) - int64(o.Position.LSN), Timeline: o.Position.Timeline}, nil
}

// noUnits is a unit manager with nothing to manage.
type noUnits struct{}

func (noUnits) State(context.Context, string) (cluster.Tri, string, error) {
	return cluster.Yes, "running", nil
}

var (
	_ checkrunner.Poster   = consul{}
	_ checkrunner.Views    = consul{}
	_ checkrunner.Database = postgres{}
	_ checkrunner.Units    = noUnits{}
)

// newPrimary is a real server, prepared and promoted.
func newPrimary(ctx context.Context, t *testing.T, name, address string) (*pgtest.Instance, *pgrepl.Server) {
	t.Helper()
	i := pgtest.New(t, address)
	pgtest.NewCA(t).Issue(t, i.SSLDir, name, address)
	s, err := pgrepl.New(pgrepl.Config{BinDir: pgtest.BinDir, DataDir: i.DataDir, ConfigFile: i.ConfigFile, Port: i.Port,
		Address: address, SocketDir: i.SocketDir, SystemUser: i.SystemUser, NodeName: name, SSLDir: i.SSLDir,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	promote := func(ctx context.Context) error { _, err := s.Promote(ctx); return err }
	start := func(context.Context) error { i.Start(t); return nil }
	boot := func(context.Context) error { return pgrepl.PrepareBoot(i.DataDir) }
	for n, step := range []func(context.Context) error{s.Prepare, s.EnsureRoles, boot, start, promote} {
		if err := step(ctx); err != nil {
			t.Fatalf("step %d: %v", n, err)
		}
	}
	return i, s
}

// The active node of a real Consul and a real PostgreSQL holds the leader lock.
// Its postmaster is killed: the checks turn critical and the lock is free; it
// comes back: they pass. Then it is frozen: it no longer answers.
func TestDeathOfTheDatabase(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	server := registrytest.Start(t, "127.10.5.1")
	client, name := server.Client(), registrytest.NodeName("127.10.5.1")
	instance, database := newPrimary(ctx, t, name, "127.10.5.1")
	assign(ctx, t, client, name)

	stop := run(ctx, t, checkrunner.Options{
		Node: name, Kind: cluster.Manager, Always: []string{"web.service"},
		Poster: consul{client, name}, Views: consul{client, name}, Database: postgres{database}, Units: noUnits{},
		Files:   func() (cluster.FilesReport, error) { return cluster.FilesReport{Sending: true, At: time.Now()}, nil },
		Disk:    database.Probe,
		Storage: func(cluster.StorageReport) error { return nil },
		Logger:  slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	defer stop()
	passing := func() error { return healthIs(ctx, client, name, true, cluster.SessionChecks()...) }
	until(ctx, t, "all checks pass", passing)

	held := make(chan time.Time, 16)
	freed := make(chan time.Time, 16)
	go func() {
		_ = client.Watch(ctx, func(v cluster.View) {
			if v.Leader.Held {
				held <- time.Now()
			} else if v.Leader.Node != "" {
				freed <- time.Now()
			}
		}, nil)
	}()
	const rounds = 3
	for round := range rounds {
		value := cluster.Leader{Node: name, Epoch: 1, Ready: true}
		if _, err := client.Acquire(ctx, value, 30*time.Second, cluster.SessionChecks()); err != nil {
			t.Fatal(err)
		}
		receive(ctx, t, "the lock is held", held)
		until(ctx, t, "the node passes as the primary", func() error { return healthIs(ctx, client, name, true, cluster.CheckRole) })

		killed := time.Now()
		if err := syscall.Kill(instance.PID(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		at := receive(ctx, t, "the lock is free", freed)
		t.Logf("round %d: the lock was free %s after the postmaster was killed", round, at.Sub(killed).Round(10*time.Microsecond))
		until(ctx, t, "all checks of the database fail", func() error {
			return healthIs(ctx, client, name, false, cluster.CheckPort, cluster.CheckAnswer, cluster.CheckRole)
		})
		instance.Kill(t)
		instance.Start(t)
		up := time.Now()
		until(ctx, t, "the checks pass again", passing)
		t.Logf("round %d: they passed %s after it was up", round, time.Since(up).Round(time.Millisecond))
	}

	froze := time.Now()
	instance.Freeze(t)
	defer instance.Thaw(t)
	until(ctx, t, "the answer fails", func() error { return healthIs(ctx, client, name, false, cluster.CheckAnswer) })
	t.Logf("a frozen server failed its check after %s", time.Since(froze).Round(time.Millisecond))
	if err := healthIs(ctx, client, name, true, cluster.CheckPort, cluster.CheckServices, cluster.CheckHeartbeat); err != nil {
		t.Errorf("while it is frozen: %v", err)
	}
}

// assign makes a cluster of one node, which is to be active.
func assign(ctx context.Context, t *testing.T, client *registry.Client, name string) {
	t.Helper()
	if err := client.CreateCluster(ctx, cluster.Info{ID: "checks-test", Schema: cluster.Schema}); err != nil {
		t.Fatal(err)
	}
	if err := client.AddNode(ctx, cluster.Node{Name: name, Address: "127.10.5.1", Kind: cluster.Manager}); err != nil {
		t.Fatal(err)
	}
	if ok, err := client.SetNextMaster(ctx, cluster.View{}, cluster.Assignment{Node: name, Epoch: 1, Reason: "test"}); !ok || err != nil {
		t.Fatalf("set next-master: %v %v", ok, err)
	}
}

// run runs check-runner until the function that it returns is called.
func run(ctx context.Context, t *testing.T, o checkrunner.Options) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error)
	go func() { ended <- checkrunner.Run(ctx, o) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	}
}

func healthIs(ctx context.Context, client *registry.Client, node string, ok bool, checks ...cluster.Check) error {
	health, err := client.Health(ctx)
	if err != nil {
		return err
	}
	for _, c := range checks {
		if state, known := health[node][string(c)]; !known || state.OK != ok {
			return fmt.Errorf("%s: known %v, passes %v: %s", c, known, state.OK, state.Output)
		}
	}
	return nil
}

func receive(ctx context.Context, t *testing.T, what string, ch chan time.Time) time.Time {
	t.Helper()
	select {
	case at := <-ch:
		return at
	case <-ctx.Done():
		t.Fatalf("waited in vain: %s", what)
		return time.Time{}
	}
}

// until waits for a condition.
func until(ctx context.Context, t *testing.T, what string, holds func() error) {
	t.Helper()
	for {
		err := holds()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s: %v", what, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
