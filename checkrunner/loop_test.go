package checkrunner

import (
	"errors"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// A healthy node renews every check in time, and does little else.
func TestHealthyNode(t *testing.T) {
	during(t, asIs, func(b *bench) {
		wait(time.Minute)
		for check, ttl := range cluster.Checks() {
			posts := b.agent.since(check, 0)
			for i, p := range posts {
				if !p.ok {
					t.Errorf("%s fails at %s: %s", check, p.at, p.output)
				}
				if i > 0 && p.at-posts[i-1].at >= ttl {
					t.Errorf("%s was left alone from %s to %s, its TTL is %s", check, posts[i-1].at, p.at, ttl)
				}
			}
			if n, most := len(posts), int(time.Minute/(ttl/3))+3; n == 0 || n > most {
				t.Errorf("%s was posted %d times in a minute, want 1 to %d", check, n, most)
			}
		}
		if got := b.agent.since(cluster.CheckRole, 30*time.Second)[0].output; got != "streaming from node1, timeline 3, 120 bytes behind" {
			t.Errorf("role: %q", got)
		}
		if n := len(b.agent.since(cluster.CheckHeartbeat, 1)); n != 4 {
			t.Errorf("heartbeats in a minute after the first: %d, want 4", n)
		}
		if n := len(b.agent.registered); n != 1 {
			t.Errorf("registered %d times, want once", n)
		}
	})
}

// The servers have not been told of a check that nothing happens to any more.
func TestServersWereNotTold(t *testing.T) {
	during(t, asIs, func(b *bench) {
		wait(10 * time.Second)
		b.agent.mu.Lock()
		b.agent.untold = true
		b.agent.mu.Unlock()
		wait(settleEvery + settleAgain)
		if told, _ := b.agent.Told(t.Context()); !told {
			t.Error("nobody had the agent tell them")
		}
		wait(time.Minute)
		if n := len(b.agent.registered); n != 2 {
			t.Errorf("registered %d times, want twice", n)
		}
	})
}

// The connection to the database breaks between two ticks: port and answer fail
// in the same instant of the bubble's clock, and pass soon after it is back.
func TestLostConnectionIsNoticedAtOnce(t *testing.T) {
	during(t, asIs, func(b *bench) {
		wait(10*time.Second + 123*time.Millisecond)
		died := time.Since(b.agent.start)
		b.database.die()
		synctest.Wait()
		for _, check := range []cluster.Check{cluster.CheckPort, cluster.CheckAnswer, cluster.CheckRole} {
			posts := b.agent.since(check, died)
			if len(posts) != 1 || posts[0].ok || posts[0].at != died {
				t.Errorf("%s: %v, want one failure at %s", check, posts, died)
			}
		}
		if posts := b.agent.since(cluster.CheckServices, died); len(posts) != 0 {
			t.Errorf("services were posted: %v", posts)
		}
		wait(3 * time.Second)
		b.database.rise()
		rose := time.Since(b.agent.start)
		wait(200 * time.Millisecond)
		for _, check := range []cluster.Check{cluster.CheckPort, cluster.CheckAnswer, cluster.CheckRole} {
			if posts := b.agent.since(check, rose); len(posts) != 1 || !posts[0].ok {
				t.Errorf("%s: %v, want one pass within 200 ms", check, posts)
			}
		}
		// The held connection is back as well: a second death is seen at once.
		wait(2*time.Second + 77*time.Millisecond)
		died = time.Since(b.agent.start)
		b.database.die()
		synctest.Wait()
		if posts := b.agent.since(cluster.CheckPort, died); len(posts) != 1 || posts[0].ok {
			t.Errorf("second death: %v, want one failure at %s", posts, died)
		}
	})
}

// A backend is terminated and the server lives: nothing fails.
func TestTerminatedConnectionAlone(t *testing.T) {
	during(t, asIs, func(b *bench) {
		wait(10 * time.Second)
		close(b.database.lost)
		synctest.Wait()
		b.database.rise()
		wait(10 * time.Second)
		for _, p := range b.agent.since(cluster.CheckPort, 0) {
			if !p.ok {
				t.Errorf("port fails at %s: %s", p.at, p.output)
			}
		}
	})
}

// Without check_fail_fast the TTL decides: nothing is said for 5 s, and then
// the reason.
func TestWithoutFailFast(t *testing.T) {
	during(t, func(b *bench) {
		b.views <- withOptions(<-b.views, cluster.Options{"check_fail_fast": "false"})
	}, func(b *bench) {
		wait(10 * time.Second)
		died := time.Since(b.agent.start)
		b.database.die()
		wait(3 * time.Second)
		if posts := b.agent.since(cluster.CheckPort, died); len(posts) > 1 || len(posts) == 1 && !posts[0].ok {
			t.Errorf("posted within the TTL: %v", posts)
		}
		wait(3 * time.Second)
		posts := b.agent.since(cluster.CheckPort, died+time.Second)
		if len(posts) == 0 || posts[0].ok || posts[0].output != "does not accept connections: connection refused" {
			t.Errorf("after the TTL: %v", posts)
		}
	})
}

// A frozen server still accepts connections in its kernel: the answer fails,
// after a second, and the checks that do not need the database go on (trap 42).
func TestFrozenServer(t *testing.T) {
	during(t, asIs, func(b *bench) {
		wait(10 * time.Second)
		b.database.mu.Lock()
		b.database.hang = true
		b.database.mu.Unlock()
		b.units.mu.Lock()
		b.units.hang = true
		b.units.mu.Unlock()
		wait(ttl/3 + 1100*time.Millisecond)
		posts := b.agent.since(cluster.CheckAnswer, 10*time.Second+1)
		if len(posts) == 0 || posts[len(posts)-1].ok || posts[len(posts)-1].output != "does not answer select 1: no answer in time" {
			t.Errorf("answer: %v", posts)
		}
		wait(10 * time.Second)
		for _, check := range []cluster.Check{cluster.CheckPort, cluster.CheckFiles} {
			posts := b.agent.since(check, 15*time.Second)
			if len(posts) < 2 || !posts[0].ok {
				t.Errorf("%s was held up: %v", check, posts)
			}
		}
		posts = b.agent.since(cluster.CheckServices, 17*time.Second)
		if len(posts) == 0 || posts[0].ok {
			t.Errorf("services: %v, want a failure after the TTL", posts)
		}
	})
}

// The multiplier changes while check-runner runs: new TTLs, new pace.
func TestMultiplierChanges(t *testing.T) {
	during(t, asIs, func(b *bench) {
		wait(10 * time.Second)
		s, _ := followingTrio()
		b.views <- withOptions(s.view, cluster.Options{"check_ttl_multiplier": "3"})
		wait(time.Second)
		last := b.agent.registered[len(b.agent.registered)-1]
		if len(b.agent.registered) != 2 || last[cluster.CheckPort] != 15*time.Second || last[cluster.CheckHeartbeat] != 105*time.Second {
			t.Errorf("registered: %v", b.agent.registered)
		}
		wait(time.Minute)
		if n := len(b.agent.since(cluster.CheckPort, 12*time.Second)); n < 11 || n > 13 {
			t.Errorf("port was posted %d times in a minute, want 12", n)
		}
	})
}

// Consul is away for a while: nothing is lost, the checks are registered again.
func TestConsulAway(t *testing.T) {
	during(t, func(b *bench) { b.agent.down = errors.New("connection refused") }, func(b *bench) {
		set := func(err error) { b.agent.mu.Lock(); b.agent.down = err; b.agent.mu.Unlock() }
		wait(5 * time.Second)
		set(nil)
		wait(2 * time.Second)
		if len(b.agent.registered) != 1 || len(b.agent.since(cluster.CheckPort, 0)) == 0 {
			t.Errorf("after the start without Consul: registered %v", b.agent.registered)
		}
		set(errors.New("connection refused"))
		wait(20 * time.Second)
		set(nil)
		back := time.Since(b.agent.start)
		wait(3 * time.Second)
		if len(b.agent.registered) < 2 {
			t.Error("the checks were not registered again")
		}
		for check := range cluster.Checks() {
			if posts := b.agent.since(check, back); len(posts) == 0 || !posts[0].ok || posts[0].at > back+repostSoon {
				t.Errorf("%s after Consul came back at %s: %v", check, back, posts)
			}
		}
	})
}

// A failover to another node, with receivers that need two seconds: the role
// check of a standby never fails.
func TestRegularFailoverDoesNotFlap(t *testing.T) {
	during(t, asIs, func(b *bench) {
		role := func(change func(*Role)) { b.database.mu.Lock(); change(&b.database.role); b.database.mu.Unlock() }
		wait(10 * time.Second)
		role(func(r *Role) { r.Streaming = false }) // the active died
		wait(time.Second)
		s, _ := followingTrio()
		s.view.NextMaster = cluster.Assignment{Node: "node3", Epoch: 5}
		s.view.Leader.Held = false
		b.views <- s.view
		role(func(r *Role) { r.UpstreamHost = "" })
		wait(2 * time.Second)
		s.view.Leader = cluster.Leader{Node: "node3", Epoch: 5, Held: true, Ready: true}
		b.views <- s.view
		wait(2 * time.Second)
		role(func(r *Role) { r.UpstreamHost, r.Streaming, r.Timeline = "10.0.0.3", true, 4 })
		wait(10 * time.Second)
		posts := b.agent.since(cluster.CheckRole, 0)
		for i, p := range posts {
			if !p.ok || i > 0 && p.at-posts[i-1].at >= ttl {
				t.Errorf("the role failed, or its TTL ended, at %s: %s", p.at, p.output)
			}
		}
		if last := posts[len(posts)-1]; last.output != "streaming from node3, timeline 4, 120 bytes behind" {
			t.Errorf("at the end: %q", last.output)
		}
	})
}

// A leader unit counts on the active node alone, and a death is noticed at once.
func TestLeaderUnits(t *testing.T) {
	during(t, func(b *bench) { b.units.set("worker.service", cluster.No) }, func(b *bench) {
		wait(10 * time.Second)
		for _, p := range b.agent.since(cluster.CheckServices, 0) {
			if !p.ok {
				t.Errorf("a standby misses a leader unit: %s", p.output)
			}
		}
		s, _ := followingTrio()
		s.view.Leader.Node = "node2"
		b.views <- s.view
		wait(time.Second) // it may take a moment to start
		b.units.set("worker.service", cluster.Yes)
		wait(10*time.Second + 321*time.Millisecond)
		for _, p := range b.agent.since(cluster.CheckServices, 0) {
			if !p.ok {
				t.Errorf("the new active fails while its leader unit starts: %s", p.output)
			}
		}
		b.units.set("worker.service", cluster.No)
		died := time.Since(b.agent.start)
		b.units.changes <- "worker.service"
		synctest.Wait()
		posts := b.agent.since(cluster.CheckServices, died)
		if len(posts) != 1 || posts[0].ok || posts[0].output != "not running: worker.service (seen)" {
			t.Errorf("a dead leader unit: %v", posts)
		}
	})
}

func TestRunnerHasNoChecksOfADatabase(t *testing.T) {
	during(t, func(b *bench) { b.Kind, b.Database, b.Disk, b.Storage = cluster.Runner, nil, nil, nil }, func(b *bench) {
		wait(20 * time.Second)
		want := map[cluster.Check]time.Duration{
			cluster.CheckServices: 5 * time.Second, cluster.CheckFiles: 10 * time.Second, cluster.CheckHeartbeat: 35 * time.Second,
		}
		if !maps.Equal(b.agent.registered[0], want) {
			t.Errorf("registered %v, want %v", b.agent.registered[0], want)
		}
		for check := range want {
			if posts := b.agent.since(check, 0); len(posts) == 0 || !posts[0].ok {
				t.Errorf("%s: %v", check, posts)
			}
		}
	})
}

func TestIncompleteOptions(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"node": func(o *Options) { o.Node = "" }, "kind": func(o *Options) { o.Kind = "" },
		"database": func(o *Options) { o.Database = nil }, "files": func(o *Options) { o.Files = nil },
		"disk": func(o *Options) { o.Disk = nil }, "storage": func(o *Options) { o.Storage = nil },
	} {
		o := healthyStandby().Options
		change(&o)
		if err := Run(t.Context(), o); err == nil {
			t.Errorf("without %s: no error", name)
		}
	}
}
