package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is a kind of fault.
type Kind string

// The kinds of faults. Those that harm a node harm one, which is a minority of it;
// those whose names say "all" harm every node.
const (
	KillPostgres    Kind = "kill-postgres"     // all its processes
	KillPostmaster  Kind = "kill-postmaster"   // its first process alone
	KillDaemon      Kind = "kill-daemon"       // one of ours
	KillConsul      Kind = "kill-consul"       // on any node
	KillRaftLeader  Kind = "kill-raft-leader"  // the Consul server that leads
	KillAllConsul   Kind = "kill-all-consul"   // every one at once; they are started again
	FreezeAllConsul Kind = "freeze-all-consul" // every one at once
	KillNode        Kind = "kill-node"         // everything on a node, as by a power cut
	KillAllNodes    Kind = "kill-all-nodes"    // every one at once
	FreezePostgres  Kind = "freeze-postgres"
	FreezeDaemon    Kind = "freeze-daemon"
	FreezeNode      Kind = "freeze-node"
	Isolate         Kind = "isolate"          // a node from all others
	IsolateOneWay   Kind = "isolate-one-way"  // it hears the others and is not heard, or the other way round
	CutLink         Kind = "cut-link"         // between two nodes; a third reaches both
	CutLinkOneWay   Kind = "cut-link-one-way" // from one node to another
	DiskFull        Kind = "disk-full"        // that of a node's database
	ShiftClock      Kind = "shift-clock"      // that of a node's PostgreSQL, up to two hours
	SetActive       Kind = "set-active"
	DuringPromotion Kind = "during-promotion" // the node that is named is struck
	DuringRewind    Kind = "during-rewind"    // a former active that comes back is struck, or its source
	DuringClone     Kind = "during-clone"     // so is a node that has lost its data directory
)

// Role says which node a fault looks for, when its time has come.
type Role string

// The roles.
const (
	OnActive  Role = "the active node"
	OnStandby Role = "a standby"
)

// Strike is what is done to a node at a moment that was waited for.
type Strike string

// The strikes.
const (
	StrikePostgres Strike = "kill its postgres"
	StrikeHandler  Strike = "kill its handler-runner"
	StrikeNode     Strike = "kill the node"
	StrikeFreeze   Strike = "freeze the node"
	StrikeIsolate  Strike = "isolate the node"
	StrikeSource   Strike = "kill the postgres that it copies from"
)

// Step is one fault of a schedule, with all that is left to chance decided.
type Step struct {
	Kind   Kind
	Role   Role
	Pick   int           // which of several nodes
	Daemon string        // of KillDaemon and FreezeDaemon
	Out    bool          // of one-way cuts: packets from the node are lost, not those to it
	Shift  time.Duration // of the clock
	Strike Strike        // of the During kinds
	Delay  time.Duration // from the moment that is waited for to the strike
	Hold   time.Duration // how long it lasts
	Gap    time.Duration // to the next one
}

// detail is what a step's name does not say.
func (s Step) detail() string {
	words := []string{}
	if s.Daemon != "" {
		words = append(words, s.Daemon)
	}
	if s.Shift != 0 {
		words = append(words, fmt.Sprintf("by %s", s.Shift))
	}
	if s.Strike != "" {
		words = append(words, fmt.Sprintf("%s after %d ms", s.Strike, s.Delay.Milliseconds()))
	}
	if s.Hold > 0 {
		words = append(words, fmt.Sprintf("for %.1f s", s.Hold.Seconds()))
	}
	return strings.Join(words, ", ")
}

// drawn is how a kind of fault is drawn.
type drawn struct {
	kind    Kind
	weight  int
	longest time.Duration // of its Hold; 0: it has none
	needs   means
	role    Role // empty: any
	strikes []Strike
}

// means is what a run needs, or has, beyond an ordinary user's rights.
type means struct {
	root  bool // for partitions and disks
	clock bool // libfaketime
}

var (
	daemons = []string{"handler-runner", "check-runner", "consul-watcher", "file-sync", "postgres-helper"}

	onNode = []Strike{StrikePostgres, StrikeHandler, StrikeNode, StrikeFreeze, StrikeIsolate}
	onCopy = []Strike{StrikeHandler, StrikeNode, StrikeFreeze, StrikeIsolate, StrikeSource}

	kinds = []drawn{
		{kind: KillPostgres, weight: 3},
		{kind: KillPostmaster, weight: 2},
		{kind: KillDaemon, weight: 3},
		{kind: KillConsul, weight: 1},
		{kind: KillRaftLeader, weight: 2},
		{kind: KillAllConsul, weight: 1},
		{kind: FreezeAllConsul, weight: 1, longest: 12 * time.Second},
		{kind: KillNode, weight: 3, longest: 12 * time.Second},
		{kind: KillAllNodes, weight: 1, longest: 3 * time.Second},
		{kind: FreezePostgres, weight: 2, longest: 8 * time.Second},
		{kind: FreezeDaemon, weight: 2, longest: 8 * time.Second},
		{kind: FreezeNode, weight: 3, longest: 10 * time.Second},
		{kind: Isolate, weight: 3, longest: 10 * time.Second, needs: means{root: true}},
		{kind: IsolateOneWay, weight: 2, longest: 10 * time.Second, needs: means{root: true}},
		{kind: CutLink, weight: 2, longest: 10 * time.Second, needs: means{root: true}},
		{kind: CutLinkOneWay, weight: 2, longest: 10 * time.Second, needs: means{root: true}},
		{kind: DiskFull, weight: 2, longest: 8 * time.Second, needs: means{root: true}},
		{kind: ShiftClock, weight: 2, longest: 8 * time.Second, needs: means{clock: true}},
		{kind: SetActive, weight: 3},
		{kind: DuringPromotion, weight: 3, longest: 6 * time.Second, role: OnActive, strikes: onNode},
		{kind: DuringRewind, weight: 2, longest: 5 * time.Second, role: OnActive, strikes: onCopy},
		{kind: DuringClone, weight: 2, longest: 5 * time.Second, role: OnStandby, strikes: onCopy},
	}
)

// Kinds lists all kinds of faults.
func Kinds() []string {
	var names []string
	for _, d := range kinds {
		names = append(names, string(d.kind))
	}
	return names
}

// lots returns the kinds that are wanted and that can be done, each as often as it
// weighs.
func lots(have means, only []string) []drawn {
	var list []drawn
	for _, d := range kinds {
		if (have.root || !d.needs.root) && (have.clock || !d.needs.clock) && slices.Contains(only, string(d.kind)) {
			list = append(list, slices.Repeat([]drawn{d}, d.weight)...)
		}
	}
	return list
}

// draw makes the faults of one round: one to three, one after the other. The same
// random numbers make the same round.
func draw(random *rand.Rand, lots []drawn, have means) []Step {
	steps := make([]Step, 1+random.IntN(3))
	for i := range steps {
		steps[i] = drawStep(random, lots[random.IntN(len(lots))], have)
	}
	return steps
}

func drawStep(random *rand.Rand, d drawn, have means) Step {
	s := Step{Kind: d.kind, Role: OnActive, Pick: random.IntN(1000), Out: random.IntN(2) == 0}
	if random.IntN(3) == 0 {
		s.Role = OnStandby
	}
	if d.role != "" {
		s.Role = d.role
	}
	if d.kind == KillDaemon || d.kind == FreezeDaemon {
		s.Daemon = daemons[random.IntN(len(daemons))]
	}
	if d.kind == ShiftClock {
		s.Shift = time.Duration(random.IntN(14400)-7200) * time.Second
	}
	strikes := d.strikes
	if len(strikes) > 0 {
		s.Strike = strikes[random.IntN(len(strikes))]
		if s.Strike == StrikeIsolate && !have.root {
			s.Strike = StrikeFreeze
		}
		s.Delay = time.Duration(random.IntN(400)) * time.Millisecond
	}
	if d.longest > 0 {
		// Short ones are drawn more often: what matters happens in the first seconds.
		f := random.Float64()
		s.Hold = (200*time.Millisecond + time.Duration(f*f*float64(d.longest))).Round(time.Millisecond)
	}
	s.Gap = time.Duration(random.IntN(4000)) * time.Millisecond
	return s
}
