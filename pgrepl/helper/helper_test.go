package helper_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/pgrepl/helper"
	"github.com/understudy-ha/understudy/pgrepl/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// rig is a server with a helper, and a client of that.
type rig struct {
	*helper.Client
	*pgtest.Instance
	direct *pgrepl.Server
	socket string
	stop   func()
}

func newRig(t *testing.T, ca *pgtest.CA, name, address string) *rig {
	t.Helper()
	i := pgtest.New(t, address)
	ca.Issue(t, i.SSLDir, name, address)
	s, err := pgrepl.New(pgrepl.Config{BinDir: pgtest.BinDir, DataDir: i.DataDir, ConfigFile: i.ConfigFile, Port: i.Port,
		Address: address, SocketDir: i.SocketDir, SystemUser: i.SystemUser, NodeName: name, SSLDir: i.SSLDir})
	must(t, err)
	t.Cleanup(s.Close)
	r := &rig{Instance: i, direct: s, socket: filepath.Join(i.SocketDir, "helper.sock")}
	r.Client = helper.NewClient(r.socket)
	r.serve(t)
	t.Cleanup(func() { r.stop() })
	return r
}

func (r *rig) serve(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", r.socket)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	srv := helper.Server{Postgres: r.direct, Divergence: filepath.Join(r.SocketDir, "divergence"), Log: slog.New(slog.DiscardHandler)}
	go func() { done <- srv.Serve(ctx, l) }()
	r.stop = func() {
		cancel()
		if err, ok := <-done; ok && err != nil {
			t.Error(err)
		}
		close(done)
		r.stop = func() {}
	}
}

// boot starts the server as that of a member.
func (r *rig) boot(t *testing.T) {
	t.Helper()
	must(t, r.direct.EnsureRoles(t.Context()))
	must(t, r.direct.Prepare(t.Context()))
	must(t, pgrepl.PrepareBoot(r.DataDir))
	r.Start(t)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What a handler does to a database in its life, by the helper.
func TestVerbs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ca := pgtest.NewCA(t)
	a := newRig(t, ca, "node-a", "127.10.7.1")
	if o := a.Observe(ctx); o.State != pgrepl.StateDown || o.Primary != cluster.Unknown {
		t.Errorf("of a stopped server: %+v", o)
	}
	a.boot(t)
	must(t, a.SetQuorum(ctx, cluster.Quorum{}))
	began, err := a.Promote(ctx)
	must(t, err)
	must(t, a.Checkpoint(ctx))
	must(t, a.direct.MarkComplete(ctx))
	must(t, a.Gate(ctx, true))
	must(t, a.EnsureSlots(ctx, "1", []string{"node-b"}))
	o := a.Observe(ctx)
	if o.State != pgrepl.StateUp || o.Primary != cluster.Yes || o.Gate != cluster.Yes || o.Position.Timeline != began.Timeline || o.Position.LSN <= began.LSN || o.Quorum == nil {
		t.Errorf("began at %s: %+v", began, o)
	}
	if history, err := a.History(ctx, began.Timeline); err != nil || len(history) != int(began.Timeline)-1 {
		t.Errorf("%v, %v", history, err)
	}
	if complete, err := a.Complete(ctx); !complete || err != nil {
		t.Errorf("complete: %t, %v", complete, err)
	}
	if free, err := a.Probe(ctx); err != nil || free < 1<<20 {
		t.Errorf("%d bytes are free: %v", free, err)
	}

	b := newRig(t, ca, "node-b", "127.10.7.2")
	must(t, b.direct.Prepare(ctx))
	if _, err := b.Detach(ctx); !errors.Is(err, pgrepl.ErrNotRunning) || !strings.Contains(err.Error(), "detach") {
		t.Errorf("detach a stopped server: %v", err)
	}
	var said []string
	up := pgrepl.Upstream{Name: "node-a", Address: a.Address, Port: a.Port, Tenure: "1", SystemID: o.SystemID}
	must(t, b.Clone(ctx, up, func(s string) { said = append(said, s) }))
	if len(said) == 0 {
		t.Error("a clone tells no progress")
	}
	must(t, pgrepl.PrepareBoot(b.DataDir))
	b.Start(t)
	for now := b.Observe(ctx); !now.Streaming() || now.Ahead == nil; now = b.Observe(ctx) {
		if time.Sleep(20 * time.Millisecond); ctx.Err() != nil {
			t.Fatalf("it does not stream: %+v", now)
		}
	}
	end, err := b.Detach(ctx)
	if err != nil || end.Timeline != began.Timeline {
		t.Errorf("detached at %s: %v", end, err)
	}
	up.SystemID = "1"
	if err := b.Rewind(ctx, up, func(string) {}); !errors.Is(err, pgrepl.ErrRunning) {
		t.Errorf("rewind under a running server: %v", err)
	}
}

// A caller that gives up is told when the work has ended, which it has soon, and one
// that dies ends it, too.
func TestCallersGiveUp(t *testing.T) {
	a := newRig(t, pgtest.NewCA(t), "node-a", "127.10.7.3")
	a.boot(t)
	a.Freeze(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := a.Promote(ctx)
	if !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("promote a frozen server: %v", err)
	}
	conn, err := net.Dial("unix", a.socket)
	must(t, err)
	must(t, json.NewEncoder(conn).Encode(map[string]string{"verb": "promote", "args": ""}))
	must(t, conn.Close())
	ended := make(chan struct{})
	go func() { a.stop(); close(ended) }() // waits for all calls
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("a call goes on")
	}
	a.Thaw(t)
}

// Nothing is known of what nobody answers for; and a helper that is started again is
// waited for by a look at the disk alone, because one that fails frees the lock.
func TestNobodyAnswers(t *testing.T) {
	a := newRig(t, pgtest.NewCA(t), "node-a", "127.10.7.4")
	a.stop()
	if o := a.Observe(t.Context()); o.State != pgrepl.StateUnknown || o.Problem == "" {
		t.Errorf("%+v", o)
	}
	if err := a.Gate(t.Context(), false); !errors.Is(err, helper.ErrUnreachable) {
		t.Errorf("close the gate: %v", err)
	}
	type look struct {
		free int64
		err  error
	}
	looked := make(chan look, 1)
	go func() {
		free, err := a.Probe(t.Context())
		looked <- look{free, err}
	}()
	select {
	case l := <-looked:
		t.Fatalf("it looked without a helper: %+v", l)
	case <-time.After(300 * time.Millisecond):
	}
	a.serve(t)
	if l := <-looked; l.err != nil || l.free == 0 {
		t.Errorf("%+v", l)
	}
}

// A caller chooses among the verbs, and no path.
func TestCallersAreNotTrusted(t *testing.T) {
	a := newRig(t, pgtest.NewCA(t), "node-a", "127.10.7.5")
	a.boot(t)
	for call, want := range map[string]string{
		`{"verb":"shell","args":"id"}`:                        "there is no verb shell",
		`{"verb":"history","args":"x"}`:                       "arguments",
		`{"verb":"export","args":{"Dir":"/etc/cron.d/evil"}}`: "export divergence",
	} {
		conn, err := net.Dial("unix", a.socket)
		must(t, err)
		_, err = io.WriteString(conn, call+"\n")
		must(t, err)
		var answer struct {
			Done  bool
			Error string
		}
		must(t, json.NewDecoder(conn).Decode(&answer))
		must(t, conn.Close())
		if !answer.Done || !strings.Contains(answer.Error, want) {
			t.Errorf("%s: %+v", call, answer)
		}
	}
	if _, err := os.Stat("/etc/cron.d/evil"); err == nil {
		t.Error("it wrote where the caller said")
	}
}
