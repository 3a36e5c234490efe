package filesync

import "fmt"

// Role is what this node's folders are to the others.
type Role uint8

// The roles. The zero value changes nothing: the folders stay what they are,
// and neither side is imposed on the other until a role is known again.
const (
	Unknown   Role = iota
	Receiving      // another node is active; this one follows it
	Preparing      // named as the next active node, which it is not yet
	Sending        // this node is active and holds the leader lock
)

func (r Role) String() string {
	return [...]string{"unknown", "receiving", "preparing", "sending"}[r]
}

// observation is all that the choice for one folder rests on.
type observation struct {
	role  Role // Unknown while held
	idle  bool // neither scanning nor fetching, and no error
	ready bool // scanned in full since the last change of role

	connected bool // to the active node
	heard     bool // everything that the active published for this epoch has arrived

	items   int  // entries that this node has or had, deleted ones included
	need    int  // entries of which others announce a newer version
	changed int  // entries that were changed here though the node receives
	last    bool // Preparing: scanned since it was named, and not reverted since
}

type action uint8

const (
	rest action = iota
	override
	revert
)

// decide says what to do about a folder that is not as the active has it.
//
// A former active announces what it had scanned and not yet sent even when it
// comes back as a receiver, and the others would take it. So the active
// overrides: it announces its own version as newer than all. Only the holder of
// the leader lock may, because two that override never stop.
//
// A receiver reverts: what was changed here is kept aside and fetched anew. It
// waits until the active is there and everything it published has arrived, or
// it would take for its own what it has only not heard of yet. One pass can
// leave a conflict copy, which the next one reverts in turn.
func decide(o observation) (action, string) {
	switch {
	case !o.idle || !o.ready:
		return rest, "the folder is busy"
	case o.role == Sending && o.need > 0 && o.items == 0:
		return rest, "this node has never held a file of this folder: it does not delete those of the others"
	case o.role == Sending && o.need > 0:
		return override, fmt.Sprintf("others announce %d entries that the active does not have", o.need)
	case o.role == Receiving && o.changed > 0 && !(o.connected && o.heard):
		return rest, fmt.Sprintf("%d entries were changed here; waiting for the active node", o.changed)
	case o.role == Receiving && o.changed > 0:
		return revert, fmt.Sprintf("%d entries were changed here", o.changed)
	case o.role == Preparing && o.changed > 0 && o.last && o.heard:
		return revert, fmt.Sprintf("%d entries were changed here before this node becomes active", o.changed)
	}
	return rest, ""
}

// settled says that a receiver and its active agree about a folder and that the
// active wants nothing of it. Until then a receiver talks to the active alone,
// so that what the active is about to override reaches nobody else.
func settled(o observation, activeNeeds bool) bool {
	return o.role == Receiving && o.idle && o.ready && o.connected && o.heard && o.need == 0 && o.changed == 0 && !activeNeeds
}
