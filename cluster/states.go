package cluster

import (
	"fmt"
	"strings"
)

// State is what a node is doing, as its handler-runner drives it.
type State string

// The states of a node.
const (
	Joining        State = "joining"     // has no whole copy of the database yet
	Standby        State = "standby"     // runs as a standby, or waits to
	Promoting      State = "promoting"   // named as the next active, on its way
	Active         State = "active"      // holds the lease and accepts writes
	Maintenance    State = "maintenance" // was active when the cluster was paused; PostgreSQL is the operator's
	Fenced         State = "fenced"      // must not accept writes; finds its way back
	ActiveMinority State = "minority"    // serves a part that is cut off; its writes are at risk
	Rejoining      State = "rejoining"   // rewinds or clones, because it has diverged
	Failed         State = "failed"      // an operator must help
	Executing      State = "runner"      // a runner: runs its units, holds the files, has no database
	Leaving        State = "leaving"     // removed from the cluster
)

// States lists all of them.
func States() []State {
	return []State{Joining, Standby, Promoting, Active, Maintenance, Fenced, ActiveMinority, Rejoining, Failed, Executing, Leaving}
}

// Action is one thing for the handler to do. Every action is idempotent and
// is observed, not assumed, to have worked.
type Action string

// The actions.
const (
	StartPostgres    Action = "start PostgreSQL as a standby"
	Fence            Action = "stop PostgreSQL and see it stopped"
	Follow           Action = "follow the named node"
	Run              Action = "run an election"
	Promote          Action = "take the lock and promote"
	Maintain         Action = "keep the sync set, the slots and the lease"
	Retake           Action = "take the lock again for the same epoch"
	Release          Action = "release the lock"
	Rally            Action = "choose who serves the part that is cut off"
	Serve            Action = "promote for the part that is cut off"
	Claim            Action = "ask for this database to become the cluster's"
	OpenReads        Action = "let clients read"
	Shut             Action = "keep clients out"
	Rejoin           Action = "rewind, or clone beside"
	StartAlwaysUnits Action = "start the units of every member"
	StartLeaderUnits Action = "start the leader units"
	StopLeaderUnits  Action = "stop the leader units"
	StopAllUnits     Action = "stop all units of the manager"
	Withdraw         Action = "leave Consul for good"
)

// Calling is what the cluster's state asks of a node.
type Calling uint8

// The callings, the most urgent last.
const (
	Await  Calling = iota // nothing is known, or nobody is named
	Obey                  // another node is named
	Lead                  // this node is named, with an epoch that it may serve
	Halt                  // the data directory belongs to another database
	Depart                // this node has been removed
)

// Observation is what a node knows when it decides. Everything in it may be
// unknown.
type Observation struct {
	Self    string
	State   State
	View    View
	Fresh   Tri   // the view was read from a reachable registry
	Promise Epoch // no WAL of an earlier epoch is taken
	Paused  bool  // by the latest word that was heard

	Lease      Tri   // this node holds the leader lock and its time has not run out
	LeaseEpoch Epoch // the latest for which this node took the lock; taken once per epoch
	Attempt    Tri   // the promotion under way: No when it has failed
	Overdue    Tri   // the lock has been free, with this node named, for too long

	Running  Tri // PostgreSQL runs
	Primary  Tri // it accepts writes
	Complete Tri // the data directory is a whole copy
	Foreign  Tri // its system identifier is not the cluster's
	Diverged Tri // its WAL is not on the way to the active's timeline
	Stranded Tri // the WAL it needs is gone from the active, for good
	Mending  Tri // a rewind or a clone is under way
	Mended   Tri // it was rewound or cloned, and needs WAL before it is consistent

	Verdict Verdict // the watcher's; unknown when it is old
	Chosen  Tri     // the part that is cut off has chosen this node to serve it; No: another
	Served  Tri     // it has served a part, and whose database goes on is not settled
}

// Calling tells what is asked of the node.
func (o Observation) Calling() Calling {
	_, removed := o.View.Removed[o.Self]
	named := o.View.NextMaster
	switch {
	case removed:
		return Depart
	case o.Foreign == Yes:
		return Halt
	case named.Node == "" || o.View.Nodes[o.Self].Name == "":
		return Await
	case named.Node == o.Self && named.Epoch >= o.Promise:
		return Lead
	case named.Node == o.Self:
		return Await
	}
	return Obey
}

// LockFree says that the view is fresh and nobody holds the leader lock.
func (o Observation) LockFree() bool { return o.Fresh == Yes && !o.View.Leader.Held }

// invited says that the node is named for an epoch that it has not tried yet.
func (o Observation) invited() bool {
	return o.Calling() == Lead && o.View.NextMaster.Epoch > o.LeaseEpoch
}

// locked says that the lock was taken for the epoch that is in force, whether or
// not it is still held.
func (o Observation) locked() bool { return o.LeaseEpoch == o.View.NextMaster.Epoch }

// vacant says that an election is due: nobody holds the lock, and the node that
// is named has either had it and lost it, or has not come for it in time. A node
// that hands over has its time, too: its lock falls with the checks of the server
// that it stops, and it names its successor a moment later.
func (o Observation) vacant() bool {
	named := o.View.NextMaster.Epoch
	return o.LockFree() && named > 0 && !o.invited() && (named == o.View.Leader.Epoch && !o.View.Leader.Yields || o.Overdue == Yes)
}

// served says that the leader key is held for the epoch that is in force, by a
// node that serves: there is an active node to rewind to.
func (o Observation) served() bool {
	l := o.View.Leader
	return o.Fresh == Yes && l.Serves() && l.Node != o.Self && l.Epoch == o.View.NextMaster.Epoch
}

// cut says that the node is known to be in the minority, and what it then does. One
// that knows no members, having lost its memory of them, does nothing.
func (o Observation) cut(mode MinorityMode) bool {
	return o.Verdict == Minority && o.Fresh != Yes && !o.Paused && o.View.Nodes[o.Self].Name != "" && MinorityMode(o.View.Options(o.Self).Get("minority_mode")) == mode
}

// adrift says that the node may still be cut off, and may serve its part.
func (o Observation) adrift() bool {
	return o.cut(MinorityActive) || o.Fresh != Yes && (o.Verdict == Undecided || o.Verdict == VerdictUnknown)
}

// broken says that the data directory cannot go on by streaming, and that there
// is an active node to mend it from.
func (o Observation) broken() bool {
	return o.Primary != Yes && o.served() && o.Served != Yes && (o.Diverged == Yes || o.Stranded == Yes || o.Complete == No)
}

// executes says that the node is a member that has no database.
func (o Observation) executes() bool { return o.View.Nodes[o.Self].Kind == Runner }

// spared says that nothing is to be done to PostgreSQL although it is not as it
// should be: the cluster is paused, and no other node is named as far as is known.
func (o Observation) spared() bool {
	return o.Paused && (o.Calling() == Lead || o.Calling() == Await && o.View.Info == nil)
}

// amiss says that an active node is not what it should be.
func (o Observation) amiss() bool { return !leads(o) || o.Primary == No || o.Running == No }

// confirmed says that the lock is held, ready, for the epoch in which PostgreSQL
// was promoted here.
func (o Observation) confirmed() bool {
	l := o.View.Leader
	return leads(o) && o.Primary == Yes && l.Ready && l.Node == o.Self && l.Epoch == o.LeaseEpoch
}

// following says that PostgreSQL runs as a standby on a whole copy.
func (o Observation) following() bool {
	return o.Running == Yes && o.Primary == No && o.Complete == Yes
}

// Transition is one row of the table: a node in From goes to To when When holds
// and does Do, in that order.
type Transition struct {
	From, To State
	When     func(Observation) bool
	Do       []Action
	Comment  string
}

// Transitions is the table of states: the log line, the documentation and the
// diagram are all made of it. A pair (From, To) stands once. The order has no
// meaning: at most one row holds for any observation. It is not to be changed.
func Transitions() []Transition { return table }

var table = transitions()

func transitions() []Transition {
	called := func(c Calling) func(Observation) bool {
		return func(o Observation) bool { return o.Calling() == c }
	}
	primary := member(func(o Observation) bool { return o.Primary == Yes })
	rows := []Transition{
		{Joining, Standby, member(Observation.following), nil,
			"the database is a whole copy and runs as a standby"},
		{Joining, Fenced, primary, []Action{Fence, StopLeaderUnits},
			"PostgreSQL accepts writes and must not"},
		{Joining, Executing, member(Observation.executes), nil,
			"a member that has no database"},
		{Standby, Promoting, func(o Observation) bool { return o.invited() && o.following() && o.LockFree() }, []Action{Promote},
			"named as the next active"},
		{Standby, Rejoining, member(func(o Observation) bool { return o.broken() && !o.Paused }), []Action{Rejoin},
			"streaming cannot bring it to where the active is"},
		{Standby, Fenced, primary, []Action{Fence, StopLeaderUnits},
			"PostgreSQL accepts writes and must not"},
		{Promoting, Active, func(o Observation) bool { return o.confirmed() && o.Attempt != No }, []Action{StartLeaderUnits},
			"open to clients on the new timeline"},
		{Promoting, Standby, member(func(o Observation) bool { return !o.locked() && o.Calling() != Lead && o.Primary != Yes }), nil,
			"passed over before it had the lock"},
		{Promoting, Fenced, member(func(o Observation) bool {
			return o.locked() && (!leads(o) || o.Attempt == No) || !o.locked() && o.Primary == Yes
		}), []Action{StopLeaderUnits, Fence, Release},
			"the lock was lost, another node is named, or the promotion has failed"},
		{Active, Fenced, member(func(o Observation) bool { return o.amiss() && !o.spared() }), []Action{Fence, StopLeaderUnits, Release},
			"the lease has ended, another node is named, or PostgreSQL is no primary any more"},
		{Active, Maintenance, member(func(o Observation) bool { return o.amiss() && o.spared() }), nil,
			"the lease has ended, or PostgreSQL is no primary any more, and the cluster is paused"},
		{Maintenance, Active, member(Observation.confirmed), nil,
			"the lock is held again"},
		{Maintenance, Standby, member(func(o Observation) bool { return o.following() && !o.broken() }), nil,
			"PostgreSQL was started again, as a standby"},
		{Maintenance, Fenced, member(func(o Observation) bool {
			return !o.spared() && !o.confirmed() && (!o.following() || o.broken())
		}), []Action{Fence, StopLeaderUnits, Release},
			"the cluster is no longer paused, or another node is named"},
		{Fenced, Standby, member(func(o Observation) bool { return o.following() && !o.broken() }), nil,
			"stopped, and running as a standby again"},
		{Fenced, Rejoining, member(func(o Observation) bool { return o.broken() && !o.Paused }), []Action{Rejoin},
			"has WAL that the new active does not have"},
		{Rejoining, Standby, member(func(o Observation) bool { return o.following() && o.served() && !o.broken() && o.Mending != Yes }), nil,
			"rewound or cloned, and running as a standby"},
		{Rejoining, Fenced, member(func(o Observation) bool { return o.Primary == Yes || o.Complete == Yes && !o.served() }), []Action{Fence, StopLeaderUnits},
			"PostgreSQL accepts writes and must not, or the active is gone and this copy may be needed"},
		{Standby, ActiveMinority, member(func(o Observation) bool { return o.cut(MinorityActive) && o.Chosen == Yes && o.following() }), []Action{Serve},
			"chosen to serve the part of the cluster that is cut off"},
		{ActiveMinority, Fenced, member(func(o Observation) bool {
			return !o.adrift() || o.Chosen == No || o.Attempt == No || o.Attempt == Yes && o.Primary != Yes || o.Running == No
		}), []Action{StopLeaderUnits, Fence},
			"the part is not cut off any more, another node serves it, or PostgreSQL is no primary"},
		{Failed, Fenced, member(func(o Observation) bool { return o.Primary != Yes }), nil,
			"the data directory is the cluster's again"},
	}
	for _, s := range States() {
		if s != Leaving {
			rows = append(rows, Transition{s, Leaving, called(Depart), []Action{StopAllUnits, Fence, Release, Withdraw},
				"removed from the cluster"})
		}
		if s != Leaving && s != Failed && s != Executing {
			rows = append(rows, Transition{s, Failed, called(Halt), []Action{StopLeaderUnits, Fence, Release},
				"the database is not this cluster's"})
		}
	}
	again := func(o Observation) bool {
		return o.Calling() != Depart && o.Primary != Yes && o.View.Nodes[o.Self].Name != ""
	}
	return append(rows,
		Transition{Leaving, Fenced, func(o Observation) bool { return again(o) && !o.executes() }, nil,
			"a member again"},
		Transition{Leaving, Executing, func(o Observation) bool { return again(o) && o.executes() }, nil,
			"a member again"})
}

// member narrows a condition to a node that is neither removed nor foreign.
func member(when func(Observation) bool) func(Observation) bool {
	return func(o Observation) bool { return o.Calling() < Halt && when(o) }
}

// leads says that the node is named and holds a lease for that very epoch.
func leads(o Observation) bool {
	return o.Calling() == Lead && o.Lease == Yes && o.LeaseEpoch == o.View.NextMaster.Epoch
}

// Decision is what a node does next: go to another state, or stay and do its
// duty.
type Decision struct {
	To     State
	Do     []Action
	Reason string
	Detail string // of a transition: which part of its condition was observed; may be empty
}

// Decide applies the table, and where no row holds, the duty of the state.
func Decide(o Observation) Decision {
	for _, t := range table {
		if t.From == o.State && t.When(o) {
			return Decision{t.To, t.Do, t.Comment, o.detail()}
		}
	}
	do, reason := duty(o)
	return Decision{To: o.State, Do: do, Reason: reason}
}

// detail says what is not as it should be with a node that is, or is about to
// be, active.
func (o Observation) detail() string {
	if o.State != Active && o.State != Promoting && o.State != Maintenance {
		return ""
	}
	var said []string
	if n := o.View.NextMaster; n.Node != "" && n.Node != o.Self {
		said = append(said, fmt.Sprintf("%s is named for epoch %d", n.Node, n.Epoch))
	}
	if o.LeaseEpoch > 0 && o.Lease == No {
		said = append(said, "the lease has ended")
	}
	switch {
	case o.Running == No:
		said = append(said, "PostgreSQL does not run")
	case o.Primary == No && o.State != Promoting:
		said = append(said, "PostgreSQL is a standby")
	}
	if o.Attempt == No {
		said = append(said, "the promotion has failed")
	}
	return strings.Join(said, "; ")
}

// duty is what a node in its state keeps doing. Each action does nothing where
// there is nothing to do.
func duty(o Observation) ([]Action, string) {
	switch {
	case o.State == Active:
		return []Action{StartAlwaysUnits, StartLeaderUnits, Maintain}, "active"
	// A unit may take its time: the database comes first.
	case o.State == ActiveMinority && o.Attempt != Yes:
		return []Action{Serve, StartAlwaysUnits}, "about to serve the part that is cut off"
	case o.State == ActiveMinority:
		return []Action{StartAlwaysUnits, StartLeaderUnits, Rally}, "active in the minority: what is written is at risk"
	case o.State == Promoting && o.invited() && o.LockFree() && o.following():
		return []Action{Promote, StartAlwaysUnits}, "about to take the lock"
	case o.State == Promoting:
		return nil, "promotion under way"
	case o.State == Maintenance && o.Primary == Yes && o.LockFree() && o.locked() && o.Calling() == Lead:
		return []Action{Retake}, "paused, and PostgreSQL accepts writes"
	case o.State == Maintenance:
		return nil, "paused; PostgreSQL is left to the operator"
	case o.Primary == Yes:
		return []Action{Fence, StopLeaderUnits}, "PostgreSQL still accepts writes"
	case o.State == Leaving:
		return []Action{Withdraw}, "removed from the cluster"
	case o.State == Failed:
		return nil, "waiting for the operator"
	case o.State == Executing:
		return []Action{StopLeaderUnits, StartAlwaysUnits}, "a runner"
	case o.State == Rejoining && o.served():
		return []Action{StopLeaderUnits, Rejoin}, "the data directory is being mended"
	case o.State == Rejoining:
		return nil, "waiting for an active node to mend the data directory from"
	}
	do := []Action{StopLeaderUnits, StartAlwaysUnits}
	if o.Running == No && o.Complete == Yes && (!o.Paused || o.State != Standby) {
		do = append(do, StartPostgres)
	}
	switch {
	case o.Served == Yes && o.served() && o.following(): // else its WAL cannot be looked into
		do = append(do, Claim)
	case o.Served == Yes:
	case o.Verdict == Minority && o.Fresh != Yes: // the active that is remembered is out of reach
	case o.Calling() == Obey && o.View.NextMaster.Epoch >= o.Promise:
		do = append(do, Follow)
	}
	switch {
	case o.cut(MinorityOff):
		return append(do, Shut), "cut off, and minority_mode is off"
	case o.cut(MinorityReadOnly):
		return append(do, OpenReads), "cut off, and minority_mode is read-only"
	case o.cut(MinorityActive) && o.State == Standby && o.following():
		return append(do, Rally), "cut off from the majority"
	}
	mayElect := !o.Paused || o.View.NextMaster.Node == o.Self
	if o.State == Standby && o.vacant() && o.following() && mayElect {
		return append(do, Run), "nobody holds the lock"
	}
	return do, "as the cluster asks"
}
