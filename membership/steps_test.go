package membership

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/node"
)

// host is one that nothing was done on yet.
func host(t *testing.T) *node.Host {
	return &node.Host{Config: config.Defaults(), Layout: config.Paths(t.TempDir())}
}

func TestBegin(t *testing.T) {
	alpha := Request{Name: "alpha", Address: "10.0.0.1"}
	begun := node.Record{Command: "join", Node: cluster.Node{Name: "alpha", Address: "10.0.0.1"}, Done: []string{"check this host", "ask to be let in"}}
	refused := begun
	refused.Done = begun.Done[:1]
	member := begun
	member.Member = true
	for name, c := range map[string]struct {
		record  node.Record
		command string
		request Request
		is      string // the name afterwards
		err     string
	}{
		"a fresh host":                        {command: "start", request: alpha, is: "alpha"},
		"a name made of the address":          {command: "start", request: Request{Address: "10.0.0.7"}, is: "node-10-0-0-7"},
		"refused, then with another name":     {refused, "join", Request{Name: "beta", Address: "10.0.0.1"}, "beta", ""},
		"refused, then the other command":     {refused, "start", alpha, "alpha", ""},
		"begun, and repeated":                 {begun, "join", alpha, "alpha", ""},
		"begun, and repeated without a name":  {begun, "join", Request{Address: "10.0.0.1"}, "alpha", ""},
		"begun, then with another name":       {begun, "join", Request{Name: "beta", Address: "10.0.0.1"}, "", "as alpha at 10.0.0.1"},
		"begun, then with another address":    {begun, "join", Request{Name: "alpha", Address: "10.0.0.2"}, "", "as alpha at 10.0.0.1"},
		"begun, then the other command":       {begun, "start", alpha, "", "an unfinished 'understudy cluster join'"},
		"a member":                            {member, "join", alpha, "", "already a member of a cluster: it is alpha"},
		"no address":                          {command: "start", err: "give --cluster-host-ip"},
		"a hostname":                          {command: "start", request: Request{Address: "localhost"}, err: "--cluster-host-ip"},
		"a bad name":                          {command: "start", request: Request{Address: "10.0.0.1", Name: "Not Good"}, err: "Not Good"},
		"a runner":                            {command: "join", request: Request{Name: "alpha", Address: "10.0.0.1", Kind: cluster.Runner}, is: "alpha"},
		"no such kind":                        {command: "join", request: Request{Address: "10.0.0.1", Kind: "walker"}, err: `--kind "walker" is neither manager nor runner`},
		"a cluster of runners":                {command: "start", request: Request{Address: "10.0.0.1", Kind: cluster.Runner}, err: "started on a manager"},
		"begun, then as another kind":         {begun, "join", Request{Address: "10.0.0.1", Kind: cluster.Runner}, "", "repeat it with that kind"},
		"refused as another version, renewed": {refused, "join", alpha, "alpha", ""},
	} {
		h := host(t)
		h.Record = c.record
		h.Record.Node.Version = "old"
		err := begin(t.Context(), h, c.command, c.request)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case h.Record.Node.Name != c.is || h.Record.Command != c.command:
			t.Errorf("%s: %+v", name, h.Record)
		case len(c.record.Done) < 2 && h.Record.Node.Version != node.Version:
			t.Errorf("%s: still says version %q", name, h.Record.Node.Version)
		}
	}
}

// A command that was interrupted goes on behind what is done.
func TestRun(t *testing.T) {
	h := host(t)
	var did, shown []string
	broken := errors.New("no disk")
	fail := true
	steps := []step{
		{"one", func(context.Context) error { did = append(did, "one"); return nil }},
		{"two", func(context.Context) error {
			did = append(did, "two")
			if fail {
				return broken
			}
			return nil
		}},
	}
	show := func(name string, done bool, err error) {
		if done && err == nil {
			name += " done"
		}
		shown = append(shown, name)
	}
	if err := run(t.Context(), h, steps, show); !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "two: ") {
		t.Errorf("run: %v", err)
	}
	r, err := node.LoadRecord(h.Layout.Membership())
	if err != nil || r.Member || !slices.Equal(r.Done, []string{"one"}) {
		t.Errorf("the record is %+v, %v", r, err)
	}
	fail, h.Record = false, r
	if err := run(t.Context(), h, steps, show); err != nil {
		t.Error(err)
	}
	if r, err := node.LoadRecord(h.Layout.Membership()); err != nil || !r.Member {
		t.Errorf("the record is %+v, %v", r, err)
	}
	if want := []string{"one", "two", "two"}; !slices.Equal(did, want) {
		t.Errorf("did %v", did)
	}
	if want := []string{"one", "one done", "two", "two", "two", "two done"}; !slices.Equal(shown, want) {
		t.Errorf("showed %v", shown)
	}
}

// An interrupted step is one, whatever error it gives.
func TestRunInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	steps := []step{{"one", func(context.Context) error {
		cancel()
		return errors.New("signal: terminated")
	}}}
	err := run(ctx, host(t), steps, func(string, bool, error) {})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("run: %v", err)
	}
}

func TestInsist(t *testing.T) {
	busy, broken := errors.New("busy"), errors.New("broken")
	passing := func(err error) bool { return errors.Is(err, busy) }
	for name, c := range map[string]struct {
		says  func(try int) error
		tries int
		err   error
	}{
		"works":                 {func(int) error { return nil }, 1, nil},
		"passes":                {func(try int) error { return map[bool]error{true: busy}[try < 4] }, 4, nil},
		"stays":                 {func(int) error { return busy }, 7, busy},
		"fails for good":        {func(int) error { return broken }, 1, broken},
		"passes and then fails": {func(try int) error { return map[bool]error{true: busy, false: broken}[try < 3] }, 3, broken},
	} {
		synctest.Test(t, func(t *testing.T) {
			tries := 0
			err := insist(t.Context(), time.Second+time.Millisecond, func(context.Context) error {
				tries++
				return c.says(tries)
			}, passing)
			if tries != c.tries || !errors.Is(err, c.err) {
				t.Errorf("%s: %d tries, %v", name, tries, err)
			}
		})
	}
}

// Of two runs at the same time one is refused.
func TestAlone(t *testing.T) {
	h := host(t)
	free, err := alone(h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := alone(h); err == nil || !strings.Contains(err.Error(), "is at work on this host") {
		t.Errorf("the second: %v", err)
	}
	free()
	again, err := alone(h)
	if err != nil {
		t.Fatal(err)
	}
	again()
}
