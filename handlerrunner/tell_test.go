package handlerrunner

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/history"
)

// tale plays commands on a trio and returns the history that was written.
func tale(t *testing.T, commands ...string) (events []cluster.Event) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		go w.client()
		defer w.end()
		for _, c := range append([]string{"trio"}, commands...) {
			if err := w.do(strings.Fields(c)); err != nil {
				t.Fatalf("%s: %v", c, err)
			}
		}
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		events = slices.Clone(w.events)
	})
	return events
}

func kinds(events []cluster.Event, kind string) (list []cluster.Event) {
	for _, e := range events {
		if e.Kind == kind {
			list = append(list, e)
		}
	}
	return list
}

// The record of a failover says which check failed, by whom that was seen, and
// when everybody followed.
func TestFailoverIsExplained(t *testing.T) {
	list, err := history.Changes(tale(t, "kill-postgres a", "wait 5s"))
	if err != nil || len(list) != 2 {
		t.Fatalf("%d changes, %v", len(list), err)
	}
	c := list[1]
	if c.From != "a" || c.Winner != "b" || c.Asked || c.Why != "a lost the lock: its check postgres-answer fails: connection refused" {
		t.Errorf("%+v", c)
	}
	var witnesses []string
	for _, s := range c.Seen {
		witnesses = append(witnesses, s.Node)
	}
	slices.Sort(witnesses)
	if !slices.Equal(slices.Compact(witnesses), []string{"a", "b", "c"}) {
		t.Errorf("seen by %v", witnesses)
	}
	for _, step := range []string{history.Detected, history.Elected, history.Locked, history.Promoted, history.Writable, history.Active, history.Following} {
		if _, ok := c.At(step); !ok {
			t.Errorf("no step %s in %+v", step, c.Steps)
		}
	}
	if r := c.Return("a"); r.Standby.IsZero() {
		t.Errorf("a came back: %+v", c.Returns)
	}
}

func TestHandOverIsExplained(t *testing.T) {
	list, err := history.Changes(tale(t, "set-active a b", "wait 5s"))
	if err != nil || len(list) != 2 {
		t.Fatalf("%d changes, %v", len(list), err)
	}
	if c := list[1]; !c.Asked || c.Why != "asked for" || c.By != "a" || c.Fate("c") == "" || c.OutageMs <= 0 {
		t.Errorf("%+v", c)
	}
}

// A standby tells that it streams once, and once more when it has lost the stream.
func TestStandbyTellsThatItIsBack(t *testing.T) {
	events := kinds(tale(t, "wait 5s", "kill-postgres c", "wait 10s"), cluster.EventFollowing)
	var of []string
	for _, e := range events {
		of = append(of, e.Node)
	}
	slices.Sort(of)
	if !slices.Equal(of, []string{"b", "c", "c"}) {
		t.Errorf("streaming was told by %v", of)
	}
}

// A node tells when it is cut off and when it is not any more, once each.
func TestPartitionIsTold(t *testing.T) {
	events := kinds(tale(t, "verdict c minority", "wait 5s", "verdict c majority", "wait 5s"), cluster.EventVerdict)
	if len(events) != 2 || events[0].Node != "c" || !strings.HasPrefix(events[0].Message, "c is cut off (minority): ") || events[1].Message != "c is in the majority again" {
		t.Errorf("%+v", events)
	}
	if at := events[1].At.Sub(events[0].At); at < 4*time.Second {
		t.Errorf("told %v apart", at)
	}
}
