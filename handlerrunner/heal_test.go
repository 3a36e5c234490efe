package handlerrunner

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// silentParts never answer.
type silentParts struct{ Parts }

func (silentParts) LastWrite(ctx context.Context, _ cluster.Node, _ cluster.LSN) (cluster.LastWrite, error) {
	<-ctx.Done()
	return cluster.LastWrite{}, ctx.Err()
}

// The driver of a node that hands over weighs by itself: a node that was cut off
// again must not hold it up for ever.
func TestWeighGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Handler{Options: Options{Node: "a", Parts: silentParts{}, Log: slog.New(slog.DiscardHandler)}}
		answers := []cluster.Answer{{Node: "b", Side: &cluster.Side{Leader: "b"}}}
		began := time.Now()
		h.weigh(context.Background(), cluster.View{}, answers)
		if took := time.Since(began); took > weighWithin+askWithin {
			t.Errorf("took %s, want at most %s", took, weighWithin+askWithin)
		}
		if answers[0].Last != nil {
			t.Errorf("b was last written at %v, want nothing known", answers[0].Last)
		}
	})
}

// noonCommit was made at noon, which this node's clock shows still.
type noonCommit struct{ Divergence }

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func (noonCommit) LastCommit(context.Context, cluster.LSN) (cluster.LastWrite, error) {
	return cluster.LastWrite{At: noon, Clock: noon}, nil
}

// A time in the WAL is by the clock of who wrote it, so that one is told with it: not
// that of the standby which is asked.
func TestLastWriteTellsTheClockOfWhoWrote(t *testing.T) {
	behind := -30 * time.Second
	for name, c := range map[string]struct {
		leader string
		side   *cluster.Side
		db     Database
		clock  time.Time
	}{
		"a primary":                             {"b", nil, Database{Primary: cluster.Yes, Ahead: &behind}, noon},
		"the last active, a standby now":        {"b", nil, Database{Primary: cluster.No, Ahead: &behind}, noon},
		"who served a part, its server is down": {"a", &cluster.Side{Leader: "b"}, Database{}, noon},
		"a standby of a part":                   {"a", &cluster.Side{Leader: "c"}, Database{Primary: cluster.No, Ahead: &behind}, noon.Add(behind)},
		"a standby":                             {"a", nil, Database{Primary: cluster.No, Ahead: &behind}, noon.Add(behind)},
		"a standby that has heard of nobody":    {"a", nil, Database{Primary: cluster.No}, time.Time{}},
	} {
		h := &Handler{Options: Options{Node: "b", Divergence: noonCommit{}}}
		h.view.Leader.Node, h.durable.Side, h.db = c.leader, c.side, c.db
		got, err := h.LastWrite(t.Context(), 0)
		got.Took = 0
		if err != nil || got != (cluster.LastWrite{At: noon, Clock: c.clock, Side: c.side.Of()}) {
			t.Errorf("%s: %v, %v, want the clock %s", name, got, err, c.clock)
		}
	}
}

// A node that was active, and follows nobody yet, is not told by the clock of the node
// that it had followed before.
func TestAhead(t *testing.T) {
	fast := 30 * time.Second
	standby := Database{Primary: cluster.No, Ahead: &fast}
	alone := Database{Primary: cluster.No}
	was := Database{Ahead: ahead(Database{Primary: cluster.Yes}, standby)}
	for name, c := range map[string]struct {
		now, past Database
		want      *time.Duration
	}{
		"streams":                         {standby, alone, &fast},
		"streamed":                        {alone, standby, &fast},
		"its server is down":              {Database{}, standby, &fast},
		"was active since":                {alone, was, new(time.Duration)},
		"was active, and streams again":   {standby, was, &fast},
		"has heard of nobody since it is": {alone, alone, nil},
	} {
		got := ahead(c.now, c.past)
		if (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// A claim is judged as an election would judge: who builds upon a promotion that broke
// off is not named, however late it was written.
func TestClaimOfABrokenPromotion(t *testing.T) {
	late := cluster.LastWrite{At: noon.Add(time.Hour), Clock: noon}
	for name, c := range map[string]struct {
		line cluster.Epoch
		want error
	}{
		"of the cluster's own":              {0, nil},
		"of a promotion that broke off":     {1, ErrKept},
		"of one that the cluster has since": {2, nil},
	} {
		h := &Handler{Options: Options{Node: "b", Divergence: noonCommit{}, Log: slog.New(slog.DiscardHandler)}}
		h.view.Sync, h.db.Primary = cluster.SyncSet{Epoch: 2, Leader: "b"}, cluster.Yes
		a := cluster.Answer{Node: "a", Line: c.line, Side: &cluster.Side{Leader: "a"}, Last: &late}
		own := cluster.Answer{Node: "b", Last: &cluster.LastWrite{At: noon, Clock: noon}}
		if _, err := h.judge(own, claimed{Answer: a, at: time.Now()}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// partsThatWent answer from the part of a node that the election has not heard of.
type partsThatWent struct{ Parts }

func (partsThatWent) LastWrite(_ context.Context, n cluster.Node, _ cluster.LSN) (cluster.LastWrite, error) {
	return cluster.LastWrite{At: noon, Clock: noon, Side: n.Name}, nil
}

// What a node has written since it answered is not on the line that it answered with.
func TestWeighWhatWasAnswered(t *testing.T) {
	h := &Handler{Options: Options{Node: "a", Parts: partsThatWent{}, Log: slog.New(slog.DiscardHandler)}}
	answers := []cluster.Answer{{Node: "b", Side: &cluster.Side{Leader: "b"}}, {Node: "c", Side: &cluster.Side{Leader: "b"}}, {Node: "d"}}
	nodes := map[string]cluster.Node{"b": {Name: "b"}, "c": {Name: "c"}, "d": {Name: "d"}}
	h.weigh(t.Context(), cluster.View{Nodes: nodes}, answers)
	if answers[0].Last == nil || answers[1].Last != nil || answers[2].Last != nil {
		t.Errorf("b was last written at %v, c, which serves a part of its own by now, at %v, d at %v", answers[0].Last, answers[1].Last, answers[2].Last)
	}
}
