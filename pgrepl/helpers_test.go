package pgrepl_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/pgrepl/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// node is a server under test and its adapter.
type node struct {
	*pgtest.Instance
	*pgrepl.Server
	name string
}

func ctxOf(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// newNode makes a stopped, prepared server.
func newNode(t *testing.T, ca *pgtest.CA, name, address string, opts ...pgtest.Option) *node {
	t.Helper()
	n := bareNode(t, ca, name, address, opts...)
	must(t, n.Prepare(ctxOf(t)))
	return n
}

// bareNode makes one that is not prepared.
func bareNode(t *testing.T, ca *pgtest.CA, name, address string, opts ...pgtest.Option) *node {
	t.Helper()
	i := pgtest.New(t, address, opts...)
	ca.Issue(t, i.SSLDir, name, address)
	s, err := pgrepl.New(configOf(i, name))
	must(t, err)
	t.Cleanup(s.Close)
	return &node{i, s, name}
}

func configOf(i *pgtest.Instance, name string) pgrepl.Config {
	return pgrepl.Config{BinDir: pgtest.BinDir, DataDir: i.DataDir, ConfigFile: i.ConfigFile, Port: i.Port, Address: i.Address,
		SocketDir: i.SocketDir, SystemUser: i.SystemUser, NodeName: name, SSLDir: i.SSLDir,
		Logger: slog.New(slog.NewTextHandler(new(bytes.Buffer), nil))}
}

func (n *node) upstream() pgrepl.Upstream {
	return pgrepl.Upstream{Name: n.name, Address: n.Instance.Address, Port: n.Instance.Port, Tenure: "1"}
}

// boot starts the server as its unit would, with the guard.
func (n *node) boot(t *testing.T) {
	t.Helper()
	must(t, pgrepl.PrepareBoot(n.Instance.DataDir))
	n.Instance.Start(t)
}

// newPrimary makes the first active of a cluster, open to clients.
func newPrimary(t *testing.T, ca *pgtest.CA, name, address string) *node {
	t.Helper()
	n := bareNode(t, ca, name, address)
	activate(t, n)
	return n
}

// activate does to a server what the start of a cluster does.
func activate(t *testing.T, n *node) {
	t.Helper()
	ctx := ctxOf(t)
	must(t, n.EnsureRoles(ctx))
	must(t, n.Prepare(ctx))
	n.boot(t)
	must(t, n.SetQuorum(ctx, cluster.Quorum{}))
	_, err := n.Promote(ctx)
	must(t, err)
	must(t, n.Checkpoint(ctx))
	must(t, n.MarkComplete(ctx))
	must(t, n.Gate(ctx, true))
}

// newPair makes a primary, node-a, and a standby that streams from it, node-b.
func newPair(t *testing.T, first, second string) (a, b *node) {
	t.Helper()
	ca := pgtest.NewCA(t)
	a = newPrimary(t, ca, "node-a", first)
	must(t, a.EnsureSlots(ctxOf(t), "1", []string{"node-b"}))
	return a, newStandby(t, ca, "node-b", second, a)
}

// newStandby makes a clone of up that streams from it.
func newStandby(t *testing.T, ca *pgtest.CA, name, address string, up *node) *node {
	t.Helper()
	ctx := ctxOf(t)
	n := newNode(t, ca, name, address)
	must(t, n.Clone(ctx, up.upstream(), nil))
	n.boot(t)
	must(t, n.Gate(ctx, true))
	n.awaitStreaming(t)
	return n
}

func (n *node) awaitStreaming(t *testing.T) {
	t.Helper()
	await(t, n.name+" streams", func() bool {
		o := n.Observe(t.Context())
		return o.Streaming()
	})
}

// awaitReplica waits until the named standby streams from n.
func (n *node) awaitReplica(t *testing.T, name string) {
	t.Helper()
	await(t, name+" streams from "+n.name, func() bool {
		for _, r := range n.Observe(t.Context()).Replicas {
			if r.Name == name && r.State == "streaming" {
				return true
			}
		}
		return false
	})
}

func (n *node) sql(t *testing.T, statement string) {
	t.Helper()
	ctx := ctxOf(t)
	c, err := pgx.Connect(ctx, n.DSN())
	must(t, err)
	defer c.Close(ctx)
	_, err = c.Exec(ctx, statement)
	must(t, err)
}

func (n *node) query(t *testing.T, query string) string {
	t.Helper()
	ctx := ctxOf(t)
	c, err := pgx.Connect(ctx, n.DSN())
	must(t, err)
	defer c.Close(ctx)
	var got string
	must(t, c.QueryRow(ctx, query).Scan(&got))
	return got
}

func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
