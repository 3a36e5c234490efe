package handlerrunner

import (
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

func TestRoster(t *testing.T) {
	const here = 1 << 30
	began := time.Date(2024, 3, 1, 12, 0, 0, 0, time.UTC)
	streams := func(name string, flushed cluster.LSN) Downstream { return Downstream{name, flushed} }
	for name, c := range map[string]struct {
		standbys []Downstream
		members  []string
		after    time.Duration // since b and c were last seen
		want     []string
	}{
		"a standby that has caught up is admitted":         {[]Downstream{streams("b", here-admitWithin)}, nil, 0, []string{"b"}},
		"one that is too far behind is not":                {[]Downstream{streams("b", here-admitWithin-1)}, nil, 0, nil},
		"a member may fall behind while it streams":        {[]Downstream{streams("b", 1)}, []string{"b"}, 0, []string{"b"}},
		"a member that has just gone is kept":              {nil, []string{"b"}, dropAfter - 1, []string{"b"}},
		"a member that is gone for long is not":            {nil, []string{"b"}, dropAfter, nil},
		"who was no member and has gone is not":            {nil, nil, 0, nil},
		"a member that was not seen yet has its time, too": {nil, []string{"d"}, time.Hour, []string{"d"}},
		"one that holds more than there is has forked":     {[]Downstream{streams("b", here+1)}, nil, 0, nil},
		"nor does it stay a member":                        {[]Downstream{streams("b", here+1)}, []string{"b"}, dropAfter, nil},
		"sorted":                                           {[]Downstream{streams("c", here), streams("b", here)}, nil, 0, []string{"b", "c"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := roster{}
			r.update(began, Database{Position: cluster.Position{Timeline: 1, LSN: here}, Standbys: []Downstream{streams("b", here), streams("c", here)}}, nil, dropAfter)
			got := r.update(began.Add(c.after), Database{Position: cluster.Position{Timeline: 1, LSN: here}, Standbys: c.standbys}, c.members, dropAfter)
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestCaughtUp(t *testing.T) {
	want := cluster.Quorum{Members: []string{"b", "c"}, K: 1}
	at := func(lsn cluster.LSN, q cluster.Quorum, standbys ...Downstream) Database {
		return Database{Position: cluster.Position{Timeline: 1, LSN: lsn}, InEffect: q, Standbys: standbys}
	}
	h := &Handler{}
	if h.caughtUp(at(100, cluster.Quorum{}, Downstream{"b", 100}), want) || h.changed != 0 {
		t.Error("the quorum is not in effect yet")
	}
	if h.caughtUp(at(200, want, Downstream{"b", 199}, Downstream{"d", 200}), want) {
		t.Error("only one that is not asked for has flushed what came before")
	}
	if h.caughtUp(at(900, want, Downstream{"b", 199}), want) {
		t.Error("nobody has flushed what came before")
	}
	if !h.caughtUp(at(900, want, Downstream{"b", 200}), want) {
		t.Error("b has flushed everything up to where the quorum was first seen; what came later does not matter")
	}
	two := cluster.Quorum{Members: []string{"b", "c"}, K: 2}
	h = &Handler{}
	if h.caughtUp(at(200, two, Downstream{"b", 200}), two) {
		t.Error("one of two has flushed")
	}
}

// A state that cannot be read is not taken for that of a new node.
func TestNewRefusesABrokenState(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.json")
	o := Options{Node: "a", State: file, Log: slog.New(slog.DiscardHandler)}
	h, err := New(o)
	if err != nil || h.durable.State != cluster.Joining {
		t.Fatalf("a new node: %v, %v", h, err)
	}
	write(t, file, `{"state": "act`)
	if _, err := New(o); err == nil {
		t.Error("a state that was cut off was accepted")
	}
	write(t, file, `{"state": "standby", "promise": 9}`)
	h, err = New(o)
	if err != nil || h.durable.Promise != 9 || h.durable.State != cluster.Standby {
		t.Errorf("%+v, %v", h.durable, err)
	}
}
