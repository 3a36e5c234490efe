package watcher

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// The agent speaks of a leader for three seconds after the cut. The time counts from
// the cut all the same.
func TestCountsFromTheLastSign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := healthyTrio(t)
		defer b.run()()
		time.Sleep(5 * time.Second)
		b.cut()
		b.network.change(func() { b.network.leader, b.network.heard = "node3", time.Now() })
		time.Sleep(3 * time.Second)
		b.expect(cluster.Majority)
		b.network.change(func() { b.network.leader = "" })
		time.Sleep(7*time.Second - time.Millisecond)
		b.expect(cluster.Undecided)
		time.Sleep(2 * time.Millisecond)
		b.expect(cluster.Minority) // minority_after since the cut
	})
}

// A link that lets a single probe pass now and then, and Consul never: the node is
// not cut off for minority_after.
func TestFlappingLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := healthyTrio(t)
		defer b.run()()
		time.Sleep(3 * time.Second)
		b.cut()
		flapped := time.Now()
		for passed := 0; passed < 20; time.Sleep(50 * time.Millisecond) {
			if r := b.report(); r.Verdict == cluster.Minority {
				t.Fatalf("in the minority: %s", r.Reason)
			}
			b.network.change(func() {
				if !b.network.pass["node2"] && time.Since(flapped) > 7*time.Second {
					b.network.pass["node2"], flapped, passed = true, time.Now(), passed+1
				}
			})
		}
	})
}

// The probes have been blocked for long when Consul loses its leader for a while:
// the silence of the probes alone does not count for minority_after.
func TestProbesBlockedForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := healthyTrio(t)
		defer b.run()()
		time.Sleep(3 * time.Second)
		b.network.change(func() { b.network.hang["node2"], b.network.hang["node3"] = true, true })
		time.Sleep(time.Minute)
		b.expect(cluster.Majority)
		b.network.change(func() { b.network.leader = "" }) // Consul elects
		time.Sleep(9 * time.Second)
		b.expect(cluster.Undecided)
		b.network.change(func() { b.network.leader = "node2" })
		time.Sleep(time.Second)
		b.expect(cluster.Majority)
	})
}

// An isolated node with the shortest minority_after is never in the minority, not
// for a moment, in which it would begin to serve.
func TestIsolatedFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := healthyTrio(t)
		<-b.views
		v := trio()
		v.Info.Options = cluster.Options{"minority_after": "1s"}
		b.views <- v
		defer b.run()()
		time.Sleep(3 * time.Second)
		b.network.change(func() { b.network.outside = cluster.No })
		b.cut()
		for began := time.Now(); b.report().Verdict != cluster.Isolated; time.Sleep(5 * time.Millisecond) {
			if r := b.report(); r.Verdict == cluster.Minority || time.Since(began) > 10*time.Second {
				t.Fatalf("%s after %s: %s", r.Verdict, time.Since(began), r.Reason)
			}
		}
	})
}
