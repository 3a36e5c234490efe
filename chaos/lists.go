package chaos

import (
	"fmt"
	"slices"
)

// Contents is what one node holds after everything has been healed.
type Contents struct {
	Node      string
	Items     []int64          // of all lists
	Registers map[string]int64 // by key
}

// Complete checks that a node holds each acknowledged item once, and none that
// was refused or that nobody has sent.
func Complete(ops []Op, c Contents) []Violation {
	count := make(map[int64]int, len(c.Items))
	for _, item := range c.Items {
		count[item]++
	}
	var found []Violation
	bad := func(what string, o Op) {
		found = append(found, Violation{Kind: what, Message: fmt.Sprintf("item %d on %s", o.Arg, c.Node), History: []Op{o}})
	}
	sent := make(map[int64]bool)
	for _, o := range ops {
		if o.Action != Append {
			continue
		}
		sent[o.Arg] = true
		switch {
		case o.Outcome == OK && count[o.Arg] == 0:
			bad("acknowledged and lost", o)
		case o.Outcome == Fail && count[o.Arg] > 0:
			bad("refused and there", o)
		case count[o.Arg] > 1:
			bad("there twice", o)
		}
	}
	var strangers []int64
	for item := range count {
		if !sent[item] {
			strangers = append(strangers, item)
		}
	}
	if len(strangers) > 0 {
		slices.Sort(strangers)
		found = append(found, Violation{Kind: "never sent and there", Message: fmt.Sprintf("items %v on %s", strangers, c.Node)})
	}
	return found
}
