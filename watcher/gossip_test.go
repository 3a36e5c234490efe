package watcher

import (
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// Gossip has lost both peers. Only the one that answers directly is joined anew, and
// not ever faster; nobody is as long as gossip has lost nobody.
func TestLostMembersAreJoinedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := healthyTrio(t)
		b.network.peers["node2"] = syscall.ECONNREFUSED
		defer b.run()()
		joined := func() (list []string) {
			b.network.change(func() { list, b.network.joined = b.network.joined, nil })
			return list
		}
		time.Sleep(10 * time.Second)
		if got := joined(); len(got) != 0 {
			t.Errorf("joined %v, and nobody was lost", got)
		}
		b.network.change(func() { b.network.failed = []string{"node1", "node2", "node3", "removed9"} })
		time.Sleep(3 * time.Second)
		if got := joined(); !slices.Contains(got, "10.0.0.3") || len(got) > 2 {
			t.Errorf("joined %v, want node3, which answers, once or twice", got)
		}
		b.network.change(func() { b.network.peers["node2"] = nil })
		time.Sleep(5 * time.Second)
		if got := joined(); !slices.Contains(got, "10.0.0.2") {
			t.Errorf("joined %v, want node2 among them, which answers now", got)
		}
		b.cut()
		time.Sleep(10 * time.Second)
		joined()
		time.Sleep(10 * time.Second)
		if got := joined(); len(got) != 0 {
			t.Errorf("joined %v, and nobody answers", got)
		}
	})
}
