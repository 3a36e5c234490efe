package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/dev/rig"
)

// TestPair lives through what a cluster of two managers must. A runner beside them
// is the host outside that they ping. Only root can cut.
func TestPair(t *testing.T) {
	t.Parallel()
	g := up(t, "two", "127.66.2.11", 2, "--runners", "1", "--options", "minority_after=3s")
	g.healthy(t, "node1", 3)
	t.Run("one of two dies", func(t *testing.T) { oneOfTwoDies(t, g) })
	if os.Geteuid() != 0 {
		t.Log("not root: packets cannot be dropped")
		return
	}
	t.Run("two are parted", func(t *testing.T) { twoAreParted(t, g) })
}

// oneOfTwoDies takes the active of two down whole. Without it Consul has no
// majority; the other one serves all the same, and goes on when the dead one is back.
func oneOfTwoDies(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	dies, stays := before.Active, before.Standbys()[0]
	after := g.underWrites(t, func() {
		g.must(t, "kill", dies)
		g.serves(t, stays)
		want(t, g.cluster(t, stays, "nodes", "list"), 0, "AT RISK: what is written on "+stays)
		g.acknowledges(t, stays)
		g.must(t, "start", dies)
		g.settles(t)
	})
	if after.Active != stays || after.Epoch != before.Epoch+1 {
		t.Errorf("from %+v to %+v", before, after)
	}
}

// settles waits until the cluster has been healthy, in one epoch, for some
// seconds. Checks that missed their TTLs while Consul had no leader are told to its
// new one late, and can cost one more change of the active.
func (g *group) settles(t *testing.T) {
	t.Helper()
	since, epoch := time.Now(), cluster.Epoch(0)
	eventually(t, "the cluster settles", func() error {
		s, r := g.tryStatus(t, g.nodes[0].Name)
		if ailments := rig.Ailments(s); len(ailments) > 0 || s.Epoch != epoch {
			since, epoch = time.Now(), s.Epoch
			return fmt.Errorf("epoch %d: %v: %v", s.Epoch, ailments, r)
		}
		if calm := time.Since(since); calm < 5*time.Second {
			return fmt.Errorf("healthy for %s", calm)
		}
		return nil
	})
}

// acknowledges waits until a node takes writes.
func (g *group) acknowledges(t *testing.T, node string) {
	t.Helper()
	eventually(t, node+" takes writes", func() error {
		id, err := g.query(t, node, "insert into acknowledged default values returning id::text")
		if err != nil && strings.Contains(err.Error(), "does not exist") {
			_, err = g.query(t, node, "create table acknowledged (id serial primary key)")
		}
		if err == nil && id == "" {
			err = errors.New("nothing was returned")
		}
		return err
	})
}

// twoAreParted cuts the link between two. Only the one that reaches the ping target
// serves.
func twoAreParted(t *testing.T, g *group) {
	want(t, g.cluster(t, "node1", "options", "set", "ping_targets="+g.address(t, "runner1")), 0)
	g.withoutGateway(t)
	for _, lonely := range []func(rig.Status) string{
		func(s rig.Status) string { return s.Active },
		func(s rig.Status) string { return s.Standbys()[0] },
	} {
		before := g.healthy(t, "node1", 3)
		alone := lonely(before)
		serving := before.Active
		if alone == serving {
			serving = before.Standbys()[0]
		}
		served := false
		after := g.underWrites(t, func() {
			g.must(t, "cut", alone, serving)
			g.must(t, "cut", alone, "runner1")
			eventually(t, alone+" is isolated and "+serving+" serves", func() error {
				code, body := get(t, g.node(t, alone).StatusURL, "", "")
				served = served || code == 200 && body["mode"] == "minority"
				if r := g.within(t, alone, "cluster", "status"); r.code != 3 || !strings.Contains(r.out, "no answer from") {
					return fmt.Errorf("%v", r)
				}
				if code, body := get(t, g.node(t, serving).StatusURL, "", ""); code != 200 || body["mode"] != "minority" {
					return fmt.Errorf("/status of %s says %d %v", serving, code, body)
				}
				return nil
			})
			g.acknowledges(t, serving)
			g.must(t, "heal")
			g.settles(t)
		})
		if served {
			t.Errorf("%s, which reaches nobody, has served", alone)
		}
		if after.Active != serving || after.Epoch <= before.Epoch {
			t.Errorf("%s reached nobody: from %+v to %+v", alone, before, after)
		}
	}
}

// withoutGateway keeps answers from beyond the machine from the processes of all
// nodes, so that the machine's own default gateway does not answer them.
func (g *group) withoutGateway(t *testing.T) {
	t.Helper()
	const table, mark = "understudy_e2e_pair", "0x5e2e"
	var rules strings.Builder
	fmt.Fprintf(&rules, "table inet %[1]s\ndelete table inet %[1]s\ntable inet %[1]s {\n chain out {\n  type filter hook output priority mangle;\n", table)
	for _, n := range g.nodes {
		path := strings.TrimPrefix(g.cgroup(t, n.Name), "/sys/fs/cgroup/")
		level := strings.Count(strings.TrimPrefix(path, "unified/"), "/") + 1
		fmt.Fprintf(&rules, "  socket cgroupv2 level %d %q ip daddr != 127.0.0.0/8 ct mark set %s\n", level, path, mark)
	}
	fmt.Fprintf(&rules, " }\n chain in {\n  type filter hook input priority filter;\n  ct mark %s ip saddr != 127.0.0.0/8 drop\n }\n}\n", mark)
	command := exec.Command("nft", "-f", "-")
	command.Stdin = strings.NewReader(rules.String())
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s\n%s", err, out, rules.String())
	}
	t.Cleanup(func() { run(t, "nft", "delete", "table", "inet", table) })
}

// TestFive cuts two of five off, the active among them. One of the two serves, and
// the other follows it. Only root can cut.
func TestFive(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Log("not root: packets cannot be dropped")
		return
	}
	g := up(t, "five", "127.66.3.11", 5, "--options", "minority_after=3s")
	before := g.healthy(t, "node1", 5)
	majority, journal := g.partsWith(t, before, before.Standbys()[3])
	serving, follows := g.servesPair(t, before.Active, before.Standbys()[3])
	g.apart(t, serving, 1000000)
	minority := g.writes(t, serving)
	eventually(t, follows+" has what "+serving+" wrote", func() error {
		n, err := g.query(t, follows, "select count(*)::text from probe where id >= "+strconv.FormatInt(minority.Journal().First, 10))
		if err == nil && n == "0" {
			err = errors.New("it has nothing")
		}
		return err
	})
	g.acknowledges(t, majority.Active)
	g.must(t, "heal")
	after := g.healthy(t, before.Standbys()[0], 5)
	if after.Active != majority.Active || after.Epoch != majority.Epoch {
		t.Errorf("from %+v to %+v", majority, after)
	}
	g.sound(t, after, journal)
	g.reapplied(t, after, serving, minority.end(t))
}

// servesPair waits until one of two nodes serves, and the other streams from it.
func (g *group) servesPair(t *testing.T, a, b string) (serving, follows string) {
	t.Helper()
	eventually(t, "one serves and the other follows it", func() error {
		for _, pair := range [][2]string{{a, b}, {b, a}} {
			if code, body := get(t, g.node(t, pair[0]).StatusURL, "", ""); code == 200 && body["mode"] == "minority" {
				serving, follows = pair[0], pair[1]
			}
		}
		if serving == "" {
			return errors.New("none serves")
		}
		if code, body := get(t, g.node(t, follows).StatusURL, "", ""); code != 400 {
			t.Fatalf("/status of %s says %d %v too", follows, code, body)
		}
		from, err := g.query(t, follows, "select host(sender_host::inet) from pg_stat_wal_receiver where status = 'streaming'")
		if err == nil && from != g.address(t, serving) {
			err = fmt.Errorf("%s streams from %s", follows, from)
		}
		return err
	})
	return serving, follows
}
