package handlerrunner

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// tally counts what happened in all seeds of a run, by what it was.
type tally map[string]int

// count notes that something happened that a run is to show.
func (s *simulation) count(what string) {
	s.telling.Lock()
	defer s.telling.Unlock()
	s.tally[what]++
}

func (t tally) add(o tally) {
	for what, n := range o {
		t[what] += n
	}
}

// String is one line for each, as packaging/simulate sums them up.
func (t tally) String() string {
	var b strings.Builder
	for _, what := range slices.Sorted(maps.Keys(t)) {
		fmt.Fprintf(&b, "%10d %s\n", t[what], what)
	}
	return b.String()
}
