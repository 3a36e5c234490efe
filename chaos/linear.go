package chaos

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// register is what one register does: it holds the last value written. An
// operation whose end nobody knows takes effect when it is placed; that it never did is
// the same as that it did after all others.
var register = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(state, in, _ any) (bool, any) {
		o := in.(Op)
		held := state.(int64)
		known := o.Outcome == OK
		switch o.Action {
		case Read:
			return o.Value == held, held
		case Write:
			return true, o.Arg
		}
		if known && o.Swapped != (held == o.Old) {
			return false, held
		}
		if held == o.Old {
			return true, o.Arg
		}
		return true, held
	},
	DescribeOperation: func(in, _ any) string { return in.(Op).String() },
}

// decideWithin bounds the search for an order of one register's operations.
const decideWithin = 60 * time.Second

// Linearizable checks that the operations on every register can be put into one
// order that each client could have seen: nothing takes effect before it was
// called or after it returned. It returns a violation for each register without.
func Linearizable(ops []Op) []Violation {
	byKey := make(map[string][]Op)
	for _, o := range ops {
		if o.Action != Append && o.Outcome != Fail {
			byKey[o.Key] = append(byKey[o.Key], o)
		}
	}
	var found []Violation
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		history := operations(byKey[key])
		result := porcupine.CheckOperationsTimeout(register, history, decideWithin)
		switch result {
		case porcupine.Unknown:
			found = append(found, Violation{Kind: "undecided", Message: fmt.Sprintf(
				"whether the %d operations on register %s are linearizable was not decided within %s", len(history), key, decideWithin)})
		case porcupine.Illegal:
			found = append(found, Violation{Kind: "not linearizable", Message: fmt.Sprintf(
				"no order explains the %d operations on register %s", len(history), key), History: stuck(byKey[key], history)})
		}
	}
	return found
}

func operations(ops []Op) []porcupine.Operation {
	clients := make(map[string]int)
	list := make([]porcupine.Operation, len(ops))
	for i, o := range ops {
		if _, ok := clients[o.Client]; !ok {
			clients[o.Client] = len(clients)
		}
		end := int64(o.Return)
		if o.Outcome == Info {
			end = math.MaxInt64
		}
		list[i] = porcupine.Operation{ClientId: clients[o.Client], Input: o, Call: int64(o.Call), Return: end}
	}
	return list
}

// around is how many operations are shown on either side of the one that does
// not fit.
const around = 20

// stuck returns the part of a history in which the longest order that could be
// found ends: what was called shortly before and after the first operation that
// no order can hold.
func stuck(ops []Op, history []porcupine.Operation) []Op {
	_, info := porcupine.CheckOperationsVerbose(register, history, decideWithin)
	var longest []porcupine.Operation
	for _, partial := range slices.Concat(info.PartialLinearizationsOperations()...) {
		if len(partial) > len(longest) {
			longest = partial
		}
	}
	placed := make(map[Op]bool)
	for _, o := range longest {
		placed[o.Input.(Op)] = true
	}
	sorted := slices.SortedFunc(slices.Values(ops), func(a, b Op) int { return cmp.Compare(a.Call, b.Call) })
	first := slices.IndexFunc(sorted, func(o Op) bool { return o.Outcome == OK && !placed[o] })
	return sorted[max(0, first-around):min(len(sorted), max(0, first)+around)]
}
