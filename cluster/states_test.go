package cluster

import (
	"fmt"
	"slices"
	"testing"
)

// observations calls yield with every combination of what a node of a trio can
// see. The space is small enough to walk whole.
func observations(yield func(Observation)) {
	tris := []Tri{Unknown, No, Yes}
	for _, state := range States() {
		if state == Executing {
			continue // no manager's
		}
		for _, named := range []Assignment{{}, {Node: "a", Epoch: 5}, {Node: "b", Epoch: 5}} {
			for _, leader := range leaders() {
				for _, promise := range []Epoch{0, 5, 6} {
					for _, tried := range []Epoch{0, 5} {
						for _, db := range databases(tris) {
							o := db
							o.Self, o.State, o.Promise, o.LeaseEpoch = "a", state, promise, tried
							o.View = trio()
							o.View.NextMaster, o.View.Leader = named, leader
							if named.Node == "" {
								o.View.Info = nil // nothing has been read
							}
							for _, lease := range tris {
								for _, fresh := range []Tri{No, Yes} {
									o.Lease, o.Fresh = lease, fresh
									for _, attempt := range []Tri{Unknown, No} {
										o.Attempt = attempt
										o.Paused = false
										yield(o)
										if promise == 5 {
											o.Paused = true
											yield(o)
										}
									}
									if lease == No && promise == 0 {
										partitions(o, yield)
									}
								}
							}
						}
					}
				}
			}
		}
	}
}

// partitions adds what a node can see that has no lease and may be cut off.
func partitions(o Observation, yield func(Observation)) {
	for _, side := range []Observation{
		{Verdict: Minority}, {Verdict: Minority, Chosen: Yes}, {Verdict: Minority, Chosen: No}, {Verdict: Undecided, Chosen: Yes},
		{Verdict: Isolated, Chosen: Yes}, {Verdict: Minority, Chosen: Yes, Served: Yes}, {Verdict: Majority, Served: Yes},
	} {
		for _, attempt := range []Tri{Unknown, Yes} {
			o.Verdict, o.Chosen, o.Served, o.Attempt = side.Verdict, side.Chosen, side.Served, attempt
			yield(o)
		}
	}
}

// runners calls yield with every combination of what a runner beside a trio can
// see, in the states that it can be in.
func runners(yield func(Observation)) {
	for _, state := range []State{Joining, Executing, Leaving} {
		for _, named := range []Assignment{{}, {Node: "b", Epoch: 5}, {Node: "r", Epoch: 5}} {
			for _, leader := range leaders() {
				for _, fresh := range []Tri{No, Yes} {
					for _, member := range []string{"yes", "removed", "not read"} {
						for _, overdue := range []Tri{Unknown, No, Yes} {
							o := Observation{Self: "r", State: state, Fresh: fresh, Overdue: overdue, Running: No, Primary: No, View: trio()}
							o.View.NextMaster, o.View.Leader = named, leader
							switch member {
							case "yes":
								o.View.Nodes["r"] = Node{Name: "r", Kind: Runner}
							case "removed":
								o.View.Removed["r"] = Tombstone{Node: "r"}
							}
							yield(o)
						}
					}
				}
			}
		}
	}
}

func leaders() []Leader {
	return []Leader{
		{},
		{Node: "b", Epoch: 4},
		{Node: "a", Epoch: 5, Held: true, Ready: true},
		{Node: "b", Epoch: 5, Held: true},
		{Node: "b", Epoch: 5, Held: true, Ready: true},
		{Node: "b", Epoch: 5, Ready: true},
	}
}

// databases gives the states that PostgreSQL and its directory can be in.
func databases(tris []Tri) (all []Observation) {
	for _, running := range tris {
		for _, primary := range tris {
			for _, complete := range tris {
				for _, broken := range []Observation{{}, {Foreign: Yes}, {Diverged: Yes}, {Stranded: Yes, Overdue: Yes}} {
					broken.Running, broken.Primary, broken.Complete = running, primary, complete
					all = append(all, broken)
				}
			}
		}
	}
	return all
}

func trio() View {
	nodes := map[string]Node{}
	for _, n := range []string{"a", "b", "c"} {
		nodes[n] = Node{Name: n, Kind: Manager}
	}
	return View{Info: &Info{ID: "x", SystemID: "1"}, Nodes: nodes, Removed: map[string]Tombstone{}}
}

func TestAtMostOneTransitionHolds(t *testing.T) {
	table := Transitions()
	seen := map[string]bool{}
	for _, row := range table {
		pair := fmt.Sprint(row.From, row.To)
		if seen[pair] {
			t.Errorf("%s stands twice in the table", pair)
		}
		seen[pair] = true
	}
	walked := 0
	once := func(o Observation) {
		walked++
		var holds []State
		for _, row := range table {
			if row.From == o.State && row.When(o) {
				holds = append(holds, row.To)
			}
		}
		if len(holds) > 1 {
			t.Fatalf("from %s both %v hold, called %d, primary %s, running %s", o.State, holds, o.Calling(), o.Primary, o.Running)
		}
	}
	observations(once)
	runners(once)
	t.Logf("%d observations", walked)
}

func TestDecisionsAreSafe(t *testing.T) {
	observations(func(o Observation) {
		d := Decide(o)
		does := func(a Action) bool { return slices.Contains(d.Do, a) }
		named := o.View.NextMaster
		for rule, broken := range map[string]bool{
			"only the named node is promoted, once an epoch, on a fresh view with a free lock": does(Promote) &&
				(named.Node != o.Self || o.LeaseEpoch >= named.Epoch || o.Fresh != Yes || o.View.Leader.Held),
			"a promise is kept":                        (does(Promote) || does(Follow)) && named.Epoch < o.Promise,
			"nothing but a whole copy is promoted":     does(Promote) && (o.Complete != Yes || o.Foreign == Yes),
			"no active without a lease":                d.To == Active && o.Lease != Yes,
			"a primary that must not write is stopped": o.Primary == Yes && d.To != Active && d.To != Promoting && d.To != ActiveMinority && !does(Fence) && (d.To != Maintenance || !o.spared()),
			"while paused PostgreSQL is left alone where nobody else is named": o.spared() && (o.State == Active || o.State == Maintenance) &&
				(does(Fence) || does(StartPostgres) || does(Rejoin)),
			"while paused only the node that is named holds an election": o.Paused && does(Run) && named.Node != o.Self,
			"the lock is retaken for an epoch in which it was held":      does(Retake) && (o.LeaseEpoch != named.Epoch || named.Node != o.Self || o.Primary != Yes || !o.LockFree()),
			"leader units only beside a lease":                           does(StartLeaderUnits) && o.Lease != Yes && d.To != ActiveMinority,
			"nothing is rewound without a ready active":                  d.To == Rejoining && o.State != Rejoining && !o.served(),
			"no election while the lock is held or unread":               does(Run) && !o.LockFree(),
			"a running primary is never rewound under":                   does(Rejoin) && o.Primary == Yes && o.State != Rejoining,
			"leaving active fences before anything else":                 o.State == Active && d.To == Fenced && d.Do[0] != Fence,
			"a foreign database is left alone":                           o.Foreign == Yes && (does(Rejoin) || does(StartPostgres) || does(Promote)),
			"a part is served only by who was chosen":                    d.To == ActiveMinority && o.State != ActiveMinority && (o.Chosen != Yes || o.Verdict != Minority),
			"a part is not served beside the majority":                   d.To == ActiveMinority && (o.Fresh == Yes || o.Verdict == Majority || o.Verdict == Isolated || o.Chosen == No),
			"what is not settled is not rewound":                         d.To == Rejoining && o.State != Rejoining && o.Served == Yes,
			"nor does it follow":                                         does(Follow) && o.Served == Yes,
			"who is cut off does not follow whom it remembers":           does(Follow) && o.Verdict == Minority && o.Fresh != Yes,
		} {
			if broken {
				t.Fatalf("%s: %v for %+v", rule, d, o)
			}
		}
	})
}

// A runner touches neither a database nor the lock, and ends up as what it is.
func TestRunnersExecute(t *testing.T) {
	runners(func(o Observation) {
		first := Decide(o)
		member := o.View.Nodes["r"].Kind == Runner
		want := o.State
		switch _, removed := o.View.Removed["r"]; {
		case removed:
			want = Leaving
		case member:
			want = Executing
		}
		if first.To != want {
			t.Fatalf("goes to %s, not %s: %+v", first.To, want, o)
		}
		o.State = first.To
		then := Decide(o)
		if then.To != want {
			t.Fatalf("does not stay %s: %v for %+v", want, then, o)
		}
		allowed := []Action{StartAlwaysUnits, StopLeaderUnits}
		if want == Leaving {
			allowed = []Action{StopAllUnits, Fence, Release, Withdraw} // of which two find nothing to do
		}
		for _, a := range slices.Concat(first.Do, then.Do) {
			if !slices.Contains(allowed, a) {
				t.Fatalf("%q is nothing for a runner: %+v", a, o)
			}
		}
		if want == Executing && !slices.Contains(then.Do, StartAlwaysUnits) {
			t.Fatalf("its units are not kept running: %v for %+v", then, o)
		}
	})
}

// From every state that a whole, willing node can be in, the cluster's wish is
// reached in a bounded number of decisions (pg_auto_failover 1025 and 1168).
func TestEveryGoalIsReached(t *testing.T) {
	for _, from := range States() {
		if from == Executing {
			continue // see TestRunnersExecute
		}
		for _, goal := range []State{Active, ActiveMinority, Standby, Leaving} {
			t.Run(fmt.Sprintf("%s to %s", from, goal), func(t *testing.T) {
				o := Observation{Self: "a", State: from, View: trio(), Fresh: Yes, Running: Yes, Primary: TriOf(from == Active), Complete: Yes}
				o.View.NextMaster = Assignment{Node: "b", Epoch: 7}
				o.View.Leader = Leader{Node: "b", Epoch: 7, Held: true, Ready: true}
				switch goal {
				case Active:
					o.View.NextMaster, o.View.Leader = Assignment{Node: "a", Epoch: 7}, Leader{Node: "b", Epoch: 6}
				case ActiveMinority:
					o.View.Leader, o.Fresh, o.Verdict = Leader{}, No, Minority
				case Leaving:
					o.View.Removed["a"] = Tombstone{Node: "a"}
				}
				for range 12 {
					d := Decide(o)
					o.State = d.To
					for _, a := range d.Do {
						obey(&o, a)
					}
				}
				if o.State != goal {
					t.Errorf("ended in %s: %+v", o.State, o)
				}
			})
		}
	}
}

// obey is a host on which every action works.
func obey(o *Observation, a Action) {
	switch a {
	case Fence:
		o.Running, o.Primary = No, No
	case StartPostgres:
		o.Running, o.Primary = Yes, No
	case Promote:
		o.LeaseEpoch, o.Lease, o.Primary = o.View.NextMaster.Epoch, Yes, Yes
		o.View.Leader = Leader{Node: o.Self, Epoch: o.LeaseEpoch, Held: true, Ready: true}
	case Rejoin:
		o.Running, o.Complete, o.Diverged, o.Stranded = Yes, Yes, No, No
	case Release:
		o.Lease = No
	case Rally:
		o.Chosen = Yes
	case Serve:
		o.Primary, o.Attempt = Yes, Yes
	}
}
