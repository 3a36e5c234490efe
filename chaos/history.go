package chaos

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/understudy-ha/understudy/dev/probe"
)

// Action is what a client asks for.
type Action string

// The actions.
const (
	Read   Action = "read"   // a register: Value is what it held, 0 when nobody had written it
	Write  Action = "write"  // a register: Arg into it
	CAS    Action = "cas"    // a register: Arg into it if it holds Old; Swapped tells
	Append Action = "append" // Arg to a list
)

// Outcome is what a client knows about what it asked for.
type Outcome string

// The outcomes. An operation that is Info may have happened, or happen later.
const (
	OK   Outcome = "ok"
	Fail Outcome = "fail"
	Info Outcome = "info"
)

// Op is one operation of one client. Times are since the run began, on the
// monotonic clock.
type Op struct {
	Client   string        `json:"client"`
	Node     string        `json:"node"`
	Timeline string        `json:"timeline,omitempty"` // of an acknowledged write, as PostgreSQL names it
	Window   int64         `json:"window"`             // of time, in which its register or list is used
	Key      string        `json:"key"`
	Action   Action        `json:"action"`
	Arg      int64         `json:"arg,omitempty"`
	Old      int64         `json:"old,omitempty"`
	Value    int64         `json:"value,omitempty"`
	Swapped  bool          `json:"swapped,omitempty"`
	Outcome  Outcome       `json:"outcome"`
	Call     time.Duration `json:"call_ns"`
	Return   time.Duration `json:"return_ns"`
	Err      string        `json:"error,omitempty"`
}

// String is one line of a printed history.
func (o Op) String() string {
	what := ""
	switch {
	case o.Action == Read && o.Outcome == OK:
		what = fmt.Sprintf("-> %d", o.Value)
	case o.Action == CAS && o.Outcome == OK:
		what = fmt.Sprintf("%d for %d -> %t", o.Arg, o.Old, o.Swapped)
	case o.Action == CAS:
		what = fmt.Sprintf("%d for %d", o.Arg, o.Old)
	case o.Action != Read:
		what = fmt.Sprint(o.Arg)
	}
	line := fmt.Sprintf("%10.4fs - %10.4fs  %-4s %s on %s: %s %s %s", o.Call.Seconds(), o.Return.Seconds(), o.Outcome, o.Client, o.Node, o.Action, o.Key, what)
	if o.Timeline != "" {
		line += " timeline " + o.Timeline
	}
	if o.Err != "" {
		line += ": " + o.Err
	}
	return line
}

// changes says whether the operation may leave something behind.
func (o Op) changes() bool { return o.Action != Read }

// acknowledged says whether the operation is a write that a database has confirmed.
func (o Op) acknowledged() bool {
	return o.Outcome == OK && o.changes() && (o.Action != CAS || o.Swapped)
}

// outcome is how a client's word is written down. What only reads has not
// happened when it was not answered.
func outcome(a Action, how probe.Outcome) Outcome {
	switch {
	case how == probe.Acknowledged:
		return OK
	case how == probe.Refused || a == Read:
		return Fail
	}
	return Info
}

// history is what all clients have done. It may be used by several at once.
type history struct {
	began time.Time

	mu  sync.Mutex
	ops []Op // in the order in which they ended
}

func (h *history) now() time.Duration { return time.Since(h.began) }

func (h *history) add(o Op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, o)
}

// all returns what has ended so far.
func (h *history) all() []Op { return h.since(0) }

// since returns what has ended after the first n operations.
func (h *history) since(n int) []Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ops[n:])
}

// within returns the operations of the windows from first to below next.
func within(ops []Op, first, next int64) []Op {
	var list []Op
	for _, o := range ops {
		if o.Window >= first && o.Window < next {
			list = append(list, o)
		}
	}
	return list
}

func (h *history) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.ops)
}
