package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/rig"
)

// TestPartitions cuts clusters in two while clients write on both sides. Only
// root can cut. After each story the cluster is whole and healthy again.
func TestPartitions(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Log("not root: packets cannot be dropped")
		return
	}
	g := up(t, "p", "127.66.1.11", 3, "--options", "minority_after=3s")
	g.healthy(t, "node1", 3)
	for _, story := range []struct {
		name string
		tell func(*testing.T, *group)
	}{
		{"both sides write", bothSidesWrite},
		{"only the minority writes", minorityWrites},
		{"minority_mode read-only", minorityReads},
		{"minority_mode off: each node in turn", minorityOff},
	} {
		if !t.Run(story.name, func(t *testing.T) { story.tell(t, g) }) {
			return
		}
	}
}

// cutOff cuts nodes off from all others, together.
func (g *group) cutOff(t *testing.T, nodes ...string) {
	t.Helper()
	for _, a := range nodes {
		for _, b := range g.nodes {
			if !slices.Contains(nodes, b.Name) {
				g.must(t, "cut", a, b.Name)
			}
		}
	}
}

// within runs understudy as a process of a node, behind the cuts around it.
func (g *group) within(t *testing.T, node string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	script := `echo $$ > "$0/cgroup.procs" && exec "$@"`
	argv := append([]string{"-c", script, g.cgroup(t, node), filepath.Join(bin, "understudy"), "--root", filepath.Join(g.dir, node)}, args...)
	var out, problem strings.Builder
	command := exec.CommandContext(ctx, "/bin/sh", argv...)
	command.Stdout, command.Stderr = &out, &problem
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("understudy %v within %s: %v", args, node, err)
	}
	return result{strings.Join(args, " "), out.String(), problem.String(), command.ProcessState.ExitCode()}
}

// cgroup is the folder of the control group that the processes of a node are in.
func (g *group) cgroup(t *testing.T, node string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", g.node(t, node).Pids["handler-runner"]))
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if f[2] != "cgroup2" {
			continue
		}
		for own := range strings.Lines(string(text)) {
			if path, ok := strings.CutPrefix(strings.TrimSpace(own), "0::"); ok {
				return filepath.Join(f[1], path)
			}
		}
	}
	t.Fatalf("no control group of %s in %s", node, text)
	return ""
}

// serves waits until a node serves a part that is cut off.
func (g *group) serves(t *testing.T, node string) {
	t.Helper()
	url := g.node(t, node).StatusURL
	eventually(t, node+" serves its part", func() error {
		if code, body := get(t, url, "", ""); code != 200 || body["mode"] != "minority" {
			return fmt.Errorf("/status says %d %v", code, body)
		}
		return nil
	})
}

// apart moves the ids of the next writer on a node away from those that are
// written elsewhere at the same time.
func (g *group) apart(t *testing.T, node string, by int) {
	t.Helper()
	sql(t, g.node(t, node), fmt.Sprintf("insert into probe select max(id) + %d, now(), 'apart' from probe", by))
}

// query asks the database of a node for one value.
func (g *group) query(t *testing.T, node, statement string) (value string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, g.targets(node)[0].DSN)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	err = conn.QueryRow(ctx, statement).Scan(&value)
	return value, err
}

// partsWith cuts an active node off, and others with it, waits until the rest has
// another, and returns what a client that wrote all the time was told until then. Nothing of
// that is at risk: the part that is cut off serves nobody yet.
func (g *group) partsWith(t *testing.T, before rig.Status, with ...string) (s rig.Status, j probe.Journal) {
	t.Helper()
	w := g.writes(t)
	g.cutOff(t, append(with, before.Active)...)
	began := time.Now()
	eventually(t, before.Active+" takes no writes any more", func() error {
		if last := w.Last(); last.Node == before.Active && time.Since(last.At) < time.Second {
			return fmt.Errorf("the last was %v", last)
		}
		return nil
	})
	j = w.end(t)
	g.epochAfter(t, before)
	t.Logf("another node is active %.1f s after the cut", time.Since(began).Seconds())
	return g.statusOf(t, before.Standbys()[0]), j
}

// exportJSON is what divergence list and show tell of an export.
type exportJSON struct {
	ID           string `json:"id"`
	HeldBy       string `json:"held_by"`
	Complete     bool   `json:"complete"`
	Transactions int    `json:"transactions"`
	Tables       []struct {
		Schema  string `json:"schema"`
		Name    string `json:"name"`
		Inserts int    `json:"inserts"`
	} `json:"tables"`
}

// exports lists what losing sides have written, and reads each of it.
func (g *group) exports(t *testing.T, from string) (list []exportJSON) {
	t.Helper()
	binary, root := filepath.Join(bin, "understudy"), filepath.Join(g.dir, from)
	r := understudy(t, binary, "--root", root, "divergence", "list", "--json")
	if err := json.Unmarshal([]byte(r.out), &list); err != nil || r.err != "" {
		t.Fatalf("%v: %v", r, err)
	}
	for i := range list {
		r := understudy(t, binary, "--root", root, "divergence", "show", "--json", list[i].ID)
		if err := json.Unmarshal([]byte(r.out), &list[i]); err != nil {
			t.Fatalf("%v: %v", r, err)
		}
	}
	return list
}

// rows is how many rows of the writers' table an export brings in.
func (e exportJSON) rows() (n int) {
	for _, table := range e.Tables {
		if table.Schema+"."+table.Name == "public.probe" {
			n += table.Inserts
		}
	}
	return n
}

// bothSidesWrite cuts the active off together with some of its clients. The others
// elect another; the old one serves its part, at risk. When the cut is healed the
// majority's database goes on, and all that the other side wrote is kept.
func bothSidesWrite(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	old := before.Active
	g.write(t, old, "common.txt", "from before")
	g.arrives(t, "common.txt", "from before", "node1", "node2", "node3")
	cut, journal := g.partsWith(t, before)
	g.apart(t, cut.Active, 1000) // what nobody had confirmed yet is with the old one
	majority := g.writes(t, before.Standbys()...)
	g.serves(t, old)
	g.showsRisk(t, old)
	g.apart(t, old, 1000000)
	minority := g.writes(t, old)
	g.write(t, old, "common.txt", "from the minority")
	g.write(t, old, "alone.txt", "the minority's alone")
	g.write(t, cut.Active, "common.txt", "from the majority")
	minority.goOn(t)
	majority.goOn(t)
	g.must(t, "heal")
	healed := time.Now()
	after := g.healthy(t, cut.Active, 3)
	t.Logf("healthy %.1f s after the cut was healed", time.Since(healed).Seconds())
	majority.goOn(t)
	went, lost := majority.end(t), minority.end(t)
	if after.Active != cut.Active || after.Epoch != cut.Epoch {
		t.Errorf("from %+v to %+v", cut, after)
	}
	g.sound(t, after, journal)
	g.sound(t, after, went)
	g.reapplied(t, after, old, lost)
	g.arrives(t, "common.txt", "from the majority", "node1", "node2", "node3")
	eventually(t, "the minority's own file leaves the folder", func() error {
		if _, err := os.Stat(g.at(t, old, "alone.txt")); err == nil {
			return errors.New("it is there")
		}
		return nil
	})
	for _, text := range []string{"from the minority", "the minority's alone"} {
		if !kept(t, g.node(t, old).Root, text) {
			t.Errorf("no version of the file %q is kept on %s", text, old)
		}
	}
}

// showsRisk checks what an operator and a load balancer see of a node that
// serves a part that is cut off.
func (g *group) showsRisk(t *testing.T, node string) {
	t.Helper()
	n := g.node(t, node)
	if code, body := get(t, n.StatusURL+"?mode=majority", "", ""); code != 400 {
		t.Errorf("/status?mode=majority says %d %v", code, body)
	}
	if _, body := get(t, n.StatusURL, "", ""); body["at_risk"] != true || body["status"] != "active" {
		t.Errorf("/status says %v", body)
	}
	list := g.within(t, node, "cluster", "nodes", "list")
	want(t, list, 0, node+" is cut off from the majority", "AT RISK: what is written on "+node)
	for line := range strings.Lines(list.out) {
		if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[0], "node") && len(f) < 15 && f[1] == g.address(t, f[0]) {
			if f[0] == node && f[2] != "minority" || f[0] != node && f[2] != "offline" {
				t.Errorf("nodes list says %q", line)
			}
		}
	}
	status := g.within(t, node, "cluster", "status")
	want(t, status, 0, "active    "+node, "AT RISK", "cut off from the majority")
}

// reapplied checks that all that a losing side wrote is in one export, which the
// loser holds, and writes it again on the active.
func (g *group) reapplied(t *testing.T, s rig.Status, loser string, lost probe.Journal) {
	t.Helper()
	list := g.exports(t, s.Active)
	if len(list) != 1 || list[0].HeldBy != loser || !list[0].Complete || list[0].rows() < len(lost.Acks) {
		t.Fatalf("%d rows were acknowledged by %s, and the exports are %+v", len(lost.Acks), loser, list)
	}
	apply := func(more ...string) result {
		return understudy(t, filepath.Join(bin, "understudy"), append(append([]string{"--root", filepath.Join(g.dir, s.Active), "divergence", "apply"}, more...), list[0].ID)...)
	}
	want(t, apply(), 0, "0 conflicts", "nothing was changed")
	want(t, apply("--yes"), 0, "applied, 0 conflicts")
	g.sound(t, s, lost)
}

// minorityWrites lets the majority's clients rest. The part that was cut off was
// written last, so its database goes on, and what the majority wrote is exported.
func minorityWrites(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	// The example's worker writes all the time.
	for _, n := range g.nodes {
		g.runs(t, n.Name, "notes-worker", "/bin/sleep infinity")
	}
	g.must(t, "kill", before.Active, "notes-worker")
	old := before.Active
	exported := len(g.exports(t, old))
	cut, _ := g.partsWith(t, before)
	g.apart(t, cut.Active, 1000)
	rests := time.Now()
	g.serves(t, old)
	minority := g.writes(t, old)
	eventually(t, "the minority is ahead by more than clocks may differ", func() error {
		if ahead := minority.Last().At.Sub(rests); ahead < cluster.ClockSkew+2*time.Second {
			return fmt.Errorf("it is by %s", ahead)
		}
		return nil
	})
	g.must(t, "heal")
	healed := time.Now()
	eventually(t, old+" is active", func() error { return g.isActive(t, cut.Standbys()[0], old, cut.Epoch+1) })
	after := g.healthy(t, old, 3)
	t.Logf("healthy %.1f s after the cut was healed", time.Since(healed).Seconds())
	minority.goOn(t)
	g.sound(t, after, minority.end(t))
	if after.Active != old || after.Epoch != cut.Epoch+1 {
		t.Errorf("from %+v to %+v", cut, after)
	}
	list := g.exports(t, old)
	if len(list) != exported+1 || list[exported].HeldBy != cut.Active || !list[exported].Complete || list[exported].rows() < 1 {
		t.Errorf("the exports are %+v", list)
	}
}

// minorityReads lets a part that is cut off serve reads.
func minorityReads(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	want(t, g.cluster(t, "node1", "options", "set", "minority_mode=read-only"), 0)
	old := before.Active
	cut, journal := g.partsWith(t, before)
	g.staysInMinority(t, old, "minority_mode is read-only", func() error {
		standby, err := g.query(t, old, "select pg_is_in_recovery()::text")
		if err == nil && standby != "true" {
			t.Errorf("%s takes writes", old)
		}
		return err
	})
	g.must(t, "heal")
	after := g.healthy(t, cut.Active, 3)
	if after.Active != cut.Active || after.Epoch != cut.Epoch {
		t.Errorf("from %+v to %+v", cut, after)
	}
	g.sound(t, after, journal)
}

// staysInMinority waits until a node is judged to be in the minority, where it
// serves nobody, and its database is as it should be.
func (g *group) staysInMinority(t *testing.T, node, says string, database func() error) {
	t.Helper()
	eventually(t, node+" is in the minority: "+says, func() error {
		if r := g.within(t, node, "cluster", "status"); r.code != 3 || !strings.Contains(r.out, "for 3s Consul has had no leader") {
			return fmt.Errorf("%v", r)
		}
		if code, body := get(t, g.node(t, node).StatusURL, "", ""); code != 400 {
			t.Errorf("/status says %d %v", code, body)
		}
		return database()
	})
}

// minorityOff cuts off one standby, then the other, then the active, each until
// minority_after is long over. Nobody serves a part, so nothing is lost.
func minorityOff(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	want(t, g.cluster(t, "node1", "options", "set", "minority_mode=off"), 0)
	for _, node := range append(before.Standbys(), before.Active) {
		seen := g.healthy(t, "node1", 3)
		after := g.underWrites(t, func() {
			g.cutOff(t, node)
			g.staysInMinority(t, node, "minority_mode is off", func() error {
				if _, err := g.query(t, node, "select '1'"); err == nil {
					return errors.New("it lets clients in")
				}
				return nil
			})
			g.must(t, "heal")
			eventually(t, node+" lets clients in again", func() error {
				_, err := g.query(t, node, "select '1'")
				return err
			})
		})
		if node != before.Active && (after.Active != seen.Active || after.Epoch != seen.Epoch) {
			t.Errorf("%s was cut off: from %+v to %+v", node, seen, after)
		}
		if node == before.Active && (after.Active == node || after.Epoch <= seen.Epoch) {
			t.Errorf("the active was cut off: from %+v to %+v", seen, after)
		}
	}
	want(t, g.cluster(t, "node1", "options", "set", "minority_mode="), 0)
}
