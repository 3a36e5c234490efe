package cluster

import (
	"maps"
	"slices"
)

func sortedKeys[V any](m map[string]V, keep func(V) bool) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if keep(m[name]) {
			names = append(names, name)
		}
	}
	return names
}

// without returns the names that are not in drop, in their order.
func without(names []string, drop ...string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(drop, n) })
}

// union returns the names of both, sorted, each once.
func union(a, b []string) []string {
	u := slices.Concat(a, b)
	slices.Sort(u)
	return slices.Compact(u)
}

func sameSet(a, b []string) bool { return slices.Equal(union(a, nil), union(b, nil)) }
