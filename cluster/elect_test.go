package cluster

import (
	"strings"
	"testing"
)

// healthyTrio is a trio whose active, a, has died; b is ahead of c, and either
// may have acknowledged.
func healthyTrio() Ballot {
	v := trio()
	v.NextMaster = Assignment{Node: "a", Epoch: 5}
	v.Sync = SyncSet{Epoch: 5, Leader: "a", Members: []string{"b", "c"}, K: 1}
	return Ballot{Epoch: 6, View: v, Answers: []Answer{sound("b", 200), sound("c", 100)}}
}

func sound(node string, lsn LSN) Answer {
	return Answer{Node: node, Epoch: 6, Position: Position{1, lsn}, SystemID: "1", Complete: Yes}
}

func option(b Ballot, node, name, value string) {
	if node == "" {
		b.View.Info.Options = Options{name: value}
		return
	}
	n := b.View.Nodes[node]
	n.Options = Options{name: value}
	b.View.Nodes[node] = n
}

func TestBorrower(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Ballot)
		of     string
	}{
		"the furthest cannot be active":            {func(b *Ballot) { b.Answers[0].Problem = "ill" }, "c of b"},
		"the furthest can":                         {func(*Ballot) {}, " of "},
		"no electable node":                        {func(b *Ballot) { b.Answers[0].Problem, b.Answers[1].Problem = "ill", "ill" }, " of "},
		"too few answers":                          {func(b *Ballot) { b.Answers = b.Answers[:1] }, " of "},
		"the WAL of a part":                        {func(b *Ballot) { b.Answers[0].Problem, b.Answers[0].Side = "ill", &Side{} }, " of "},
		"on a line that the lender may not be on":  {func(b *Ballot) { b.Answers[0].Problem, b.Answers[1].Line = "ill", 5 }, " of "},
		"both on the line of the latest promotion": {func(b *Ballot) { b.Answers[0].Problem, b.Answers[0].Line, b.Answers[1].Line = "ill", 5, 5 }, "c of b"},
	} {
		b := healthyTrio()
		c.change(&b)
		if out := Elect(b); out.Borrower+" of "+out.Lender != c.of {
			t.Errorf("%s: %s borrows of %s, %s", name, out.Borrower, out.Lender, out.Reason)
		}
	}
}

// elections are changes of healthyTrio, and who is to win each.
var elections = map[string]struct {
	change func(*Ballot)
	winner string
	reason string // part of it
}{
	"the furthest wins": {func(*Ballot) {}, "b", "furthest"},
	"one of two members of the sync set is not enough": {func(b *Ballot) { b.Answers = b.Answers[:1] }, "", "2 must answer"},
	"the last active stands for all":                   {func(b *Ballot) { b.Answers = []Answer{sound("a", 200), sound("c", 100)} }, "a", "furthest"},
	"a member without a whole copy has not answered":   {func(b *Ballot) { b.Answers[1].Complete = No }, "", "2 must answer"},
	"nor has one whose copy is not known to be whole":  {func(b *Ballot) { b.Answers[1].Complete = Unknown }, "", "2 must answer"},
	"nor one that promised another epoch":              {func(b *Ballot) { b.Answers[1].Epoch = 7 }, "", "2 must answer"},
	"nor one with another database":                    {func(b *Ballot) { b.Answers[1].SystemID = "2" }, "", "2 must answer"},
	"who was named and has not opened has what was acknowledged": {func(b *Ballot) {
		b.View.NextMaster, b.Answers = Assignment{Node: "c", Epoch: 6}, []Answer{sound("c", 100)}
	}, "c", "furthest"},
	"nobody answered": {func(b *Ballot) { b.Answers = nil }, "", "no node with a whole copy"},
	"the furthest cannot, and the rest may lack its commits": {func(b *Ballot) { b.Answers[0].Problem = "its unit x does not run" }, "", "that no electable node has"},
	"the furthest cannot, but another has as much":           {func(b *Ballot) { b.Answers[0].Problem, b.Answers[1].Position.LSN = "ill", 200 }, "c", "furthest"},
	"the last active cannot, and nobody has its last WAL, so nobody has acknowledged it": {func(b *Ballot) {
		b.Answers = []Answer{sound("a", 300), sound("b", 200), sound("c", 100)}
		b.Answers[0].Problem, b.Answers[2].Problem = "its unit x does not run", "its unit x does not run"
	}, "b", "furthest"},
	"neither the last active nor a member that is ahead can": {func(b *Ballot) {
		b.Answers = []Answer{sound("a", 300), sound("b", 200), sound("c", 100)}
		b.Answers[0].Problem, b.Answers[1].Problem = "its unit x does not run", "its unit x does not run"
	}, "", "that no electable node has"},
	"no_failover is respected":                          {func(b *Ballot) { option(*b, "b", "no_failover", "true"); b.Answers[1].Position.LSN = 200 }, "c", ""},
	"among equals the preferred primary":                {func(b *Ballot) { option(*b, "", "preferred_primary", "c"); b.Answers[1].Position.LSN = 200 }, "c", ""},
	"preferred, but behind":                             {func(b *Ballot) { option(*b, "", "preferred_primary", "c") }, "b", ""},
	"among equals the higher priority":                  {func(b *Ballot) { option(*b, "c", "priority", "200"); b.Answers[1].Position.LSN = 200 }, "c", ""},
	"among equals the one with all files":               {func(b *Ballot) { b.Answers[1].Files = Yes; b.Answers[1].Position.LSN = 200 }, "c", ""},
	"among equals the first name":                       {func(b *Ballot) { b.Answers[1].Position.LSN = 200 }, "b", ""},
	"a hand-over goes to its target":                    {func(b *Ballot) { b.Target = "c"; b.Answers[1].Position.LSN = 200 }, "c", ""},
	"a hand-over never goes to a target that is behind": {func(b *Ballot) { b.Target = "c" }, "b", ""},
	"who hands over counts, and does not win":           {func(b *Ballot) { b.Exclude = []string{"a"}; b.Answers = []Answer{sound("a", 200), sound("b", 200)} }, "b", ""},
	"an empty sync set: nobody but its leader":          {func(b *Ballot) { b.View.Sync = SyncSet{Epoch: 5, Leader: "a"} }, "", "only a is known"},
	"an empty sync set: its leader":                     {func(b *Ballot) { b.View.Sync = SyncSet{Epoch: 5, Leader: "a"}; b.Answers = []Answer{sound("a", 1)} }, "a", ""},
	"async: as far as max_lag_on_failover allows":       {func(b *Ballot) { option(*b, "", "sync_mode", "async"); b.View.Sync = SyncSet{Epoch: 5, Leader: "a"} }, "b", ""},
	"async: too far behind":                             {func(b *Ballot) { option(*b, "", "sync_mode", "async"); b.Answers[0].Seen = 200 + 1<<20 + 1 }, "", "max_lag_on_failover"},
	"paused: nobody but the last active":                {func(b *Ballot) { b.View.Info.Paused = &Pause{}; b.View.NextMaster.Node = "a" }, "", "no node that has answered can be active"},
	"paused: the last active":                           {func(b *Ballot) { b.View.Info.Paused = &Pause{}; b.View.NextMaster.Node = "b" }, "b", "furthest"},
	"paused: the target of a hand-over":                 {func(b *Ballot) { b.View.Info.Paused = &Pause{}; b.Target = "c"; b.Answers[1].Position.LSN = 200 }, "c", ""},
	"a removed node's answer is nothing":                {func(b *Ballot) { delete(b.View.Nodes, "c") }, "", "2 must answer"},
	"a promotion that broke off unpublished does not stand in the way": {func(b *Ballot) {
		b.Answers = []Answer{sound("a", 300), sound("b", 200), sound("c", 300)}
		b.Answers[1].Position, b.Answers[1].Line = Position{2, 300}, 6
		b.Answers[1].History = History{{1, 200}}
		b.View.Sync.Epoch, b.View.Sync.Leader = 5, "a"
	}, "a", "furthest"},
	"one that was published does": {func(b *Ballot) {
		b.Answers = []Answer{sound("b", 200), sound("c", 300)}
		b.Answers[0].Position, b.Answers[0].Line = Position{2, 300}, 5
		b.Answers[0].History = History{{1, 200}}
	}, "", ""},
	"who was named and did not come is passed over": {func(b *Ballot) {
		b.View.NextMaster, b.View.Leader = Assignment{Node: "b", Epoch: 6}, Leader{Node: "a", Epoch: 5, Timeline: 1}
		b.Avoid, b.Answers[1].Position.LSN = Unconfirmed(b.View), 200
	}, "c", ""},
	"who failed on the way is passed over": {func(b *Ballot) {
		b.View.NextMaster, b.View.Leader = Assignment{Node: "b", Epoch: 6}, Leader{Node: "b", Epoch: 6}
		b.Avoid, b.Answers[1].Position.LSN = Unconfirmed(b.View), 200
	}, "c", ""},
	"but named again where nobody else can": {func(b *Ballot) {
		b.View.NextMaster, b.View.Leader = Assignment{Node: "b", Epoch: 6}, Leader{Node: "a", Epoch: 5, Timeline: 1}
		b.Avoid = Unconfirmed(b.View)
	}, "b", ""},
	"who served is not avoided": {func(b *Ballot) {
		b.View.Leader = Leader{Node: "a", Epoch: 5, Timeline: 1}
		b.Answers, b.Avoid = []Answer{sound("a", 200), sound("c", 100)}, Unconfirmed(b.View)
	}, "a", ""},
	"before the first epoch anybody will do":   {func(b *Ballot) { b.View.Sync = SyncSet{}; b.Answers = b.Answers[1:] }, "c", ""},
	"forced, by an operator: whoever is named": {func(b *Ballot) { b.Forced, b.Target, b.Answers = true, "c", b.Answers[1:] }, "c", "may be missing"},
	"forced, but not there":                    {func(b *Ballot) { b.Forced, b.Target = true, "a" }, "", "an operator named a"},
	"forced, but not a whole copy":             {func(b *Ballot) { b.Forced, b.Target, b.Answers[1].Complete = true, "c", No }, "", "an operator named c"},
	"a runner is not made active": {func(b *Ballot) {
		n := b.View.Nodes["b"]
		n.Kind = Runner
		b.View.Nodes["b"] = n
		b.Answers[1].Position.LSN = 200
	}, "c", ""},
	"WAL beyond the fork of a later timeline does not count":  {func(b *Ballot) { later(b, 90) }, "", "2 must answer"},
	"WAL up to the fork of a later timeline is merely behind": {func(b *Ballot) { later(b, 100) }, "b", ""},
}

func TestElect(t *testing.T) {
	for name, c := range elections {
		t.Run(name, func(t *testing.T) {
			b := healthyTrio()
			c.change(&b)
			out := Elect(b)
			if out.Winner != c.winner || !strings.Contains(out.Reason, c.reason) {
				t.Errorf("winner %q because %q, want %q because %q; passed: %v", out.Winner, out.Reason, c.winner, c.reason, out.Passed)
			}
			if len(out.Passed)+len(out.Winner) == 0 && len(b.Answers) > 1 && out.Reason == "" {
				t.Error("nothing is said about those that did not win")
			}
		})
	}
}

// later puts b on timeline 2, which left timeline 1 at fork; c is at 100 on 1.
func later(b *Ballot, fork LSN) {
	b.Answers[0].Position = Position{2, 300}
	b.Answers[0].History = History{{1, fork}}
}

// Whatever the order of the answers, all electors name the same node.
func TestElectDoesNotDependOnOrder(t *testing.T) {
	lsns := []LSN{100, 200}
	for i := range 8 {
		b := healthyTrio()
		b.Answers = []Answer{sound("a", lsns[i&1]), sound("b", lsns[i>>1&1]), sound("c", lsns[i>>2&1])}
		r := b
		r.Answers = []Answer{b.Answers[2], b.Answers[0], b.Answers[1]}
		if x, y := Elect(b), Elect(r); x.Winner != y.Winner || x.Winner == "" {
			t.Errorf("%v: %q or %q", b.Answers, x.Winner, y.Winner)
		}
	}
}
