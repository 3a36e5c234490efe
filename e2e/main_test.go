// Package e2e tests whole clusters of real components, as an operator meets
// them: through the understudy command, over HTTP and over SQL.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/dev/rig"
)

// soon bounds every wait: what has not come by then does not come.
const soon = 60 * time.Second

var (
	scratch string // below it are the clusters, where PostgreSQL's user can come
	bin     string // the binaries, built once
)

func TestMain(m *testing.M) {
	code, err := runAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func runAll(m *testing.M) (code int, err error) {
	if scratch, err = os.MkdirTemp("/var/tmp", "e2e-"); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	if err := os.Chmod(scratch, 0o755); err != nil {
		return 1, err
	}
	bin = filepath.Join(scratch, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return 1, err
	}
	for _, name := range []string{"check-runner", "consul-watcher", "file-sync", "handler-runner", "postgres-helper", "understudy"} {
		if err := build(filepath.Join(bin, name), "cmd/"+name, "test"); err != nil {
			return 1, err
		}
	}
	if err := build(filepath.Join(bin, "notes"), "example/notes", "test"); err != nil {
		return 1, err
	}
	consul, err := exec.LookPath("consul")
	if err != nil {
		if consul, err = filepath.Abs("../bin/consul"); err != nil {
			return 1, err
		}
	}
	if err := os.Symlink(consul, filepath.Join(bin, "consul")); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// build makes one of our programs, which says that it has the given version.
func build(file, pkg, version string) error {
	out, err := exec.Command("go", "build", "-tags", "noquic", "-ldflags",
		"-X github.com/understudy-ha/understudy/node.Version="+version, "-o", file, "../"+pkg).CombinedOutput()
	if err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// result is how a command ended.
type result struct {
	line     string
	out, err string
	code     int // -1: by a signal
}

func (r result) String() string {
	return fmt.Sprintf("understudy %s: exit code %d\n%s%s", r.line, r.code, r.out, r.err)
}

// understudy runs the command with the given binary and waits for its end.
func understudy(t *testing.T, binary string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*soon)
	defer cancel()
	var out, problem bytes.Buffer
	command := exec.CommandContext(ctx, binary, args...)
	command.Stdout, command.Stderr = &out, &problem
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("understudy %s: %v", strings.Join(args, " "), err)
	}
	return result{strings.Join(args, " "), out.String(), problem.String(), command.ProcessState.ExitCode()}
}

// group is the nodes of one folder: a cluster, or hosts that are to become one.
type group struct {
	dir   string
	nodes []dev.NodeInfo
}

func (g *group) dev(t *testing.T, args ...string) result {
	t.Helper()
	return understudy(t, filepath.Join(bin, "understudy"), append([]string{"dev", args[0], "--dir", g.dir}, args[1:]...)...)
}

// must is dev, and the test ends where that fails.
func (g *group) must(t *testing.T, args ...string) string {
	t.Helper()
	r := g.dev(t, args...)
	if r.code != 0 {
		t.Fatal(r)
	}
	return r.out
}

// up makes a cluster of n managers that is taken down with the test.
func up(t *testing.T, name, firstAddress string, n int, more ...string) *group {
	t.Helper()
	g := &group{dir: filepath.Join(scratch, name)}
	g.takeDownWith(t)
	g.must(t, append([]string{"up", "--detach", "--nodes", strconv.Itoa(n), "--first-address", firstAddress}, more...)...)
	g.look(t)
	return g
}

// hosts makes n hosts on which everything is installed and nothing is clustered.
func hosts(t *testing.T, name, network string, n int) *group {
	t.Helper()
	g := &group{dir: filepath.Join(scratch, name)}
	g.takeDownWith(t)
	c, err := dev.FindBinaries(bin)
	if err != nil {
		t.Fatal(err)
	}
	c.Dir = g.dir
	for i := range n {
		node := "node" + strconv.Itoa(i+1)
		c.Nodes = append(c.Nodes, dev.Node{Name: node, Address: network + strconv.Itoa(11+i), Root: filepath.Join(g.dir, node)})
	}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(g.dir, "dev.json"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		if err := c.Install(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		g.must(t, "start", n.Name)
	}
	g.look(t)
	return g
}

// takeDownWith takes everything down when the test ends, and checks that no
// process is left. After a failure it shows the gist of what the daemons said, and
// where the rest is.
func (g *group) takeDownWith(t *testing.T) {
	t.Cleanup(func() {
		if t.Failed() {
			logs := g.dev(t, "logs", "--lines", "400").out
			file := filepath.Join("..", "bin", "failed", filepath.Base(g.dir)+".log")
			err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(logs), 0o644))
			t.Logf("%sthe whole logs: %s (%v)", gist(logs), file, err)
		}
		var info dev.Info
		_ = json.Unmarshal([]byte(g.dev(t, "info", "--json").out), &info)
		if r := g.dev(t, "down"); r.code != 0 {
			t.Error(r)
		}
		for _, n := range info.Nodes {
			for name, pid := range n.Pids {
				if alive(pid) {
					t.Errorf("%s of %s (process %d) is left", name, n.Name, pid)
				}
			}
		}
		if _, err := os.Stat(g.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", g.dir, err)
		}
	})
}

// gist is the end of what each node did, and the last warnings and errors of each log,
// without repetitions: of a long output only a part may be kept.
func gist(logs string) string {
	const most = 10
	last, seen := map[string][]string{}, map[string]bool{}
	for line := range strings.Lines(logs) {
		words := strings.Fields(line)
		if len(words) < 3 {
			continue
		}
		of, did := words[0]+" "+words[1], words[1] == "cluster" // of all daemons
		if said := digits.ReplaceAllString(line, ""); did || complaint.MatchString(line) && !seen[said] {
			seen[said] = true
			last[of] = append(last[of], line[:min(len(line), 400)])
		}
	}
	var b strings.Builder
	for _, of := range slices.Sorted(maps.Keys(last)) {
		for _, line := range last[of][max(0, len(last[of])-most):] {
			b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	return b.String()
}

var (
	complaint = regexp.MustCompile("level=(WARN|ERROR)|FATAL|PANIC|ERROR:|panic:|HINT:|DETAIL:")
	digits    = regexp.MustCompile("[0-9]+")
)

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(stat, []byte(") Z "))
}

// look reads dev info.
func (g *group) look(t *testing.T) dev.Info {
	t.Helper()
	var info dev.Info
	if err := json.Unmarshal([]byte(g.must(t, "info", "--json")), &info); err != nil {
		t.Fatal(err)
	}
	g.nodes = info.Nodes
	return info
}

func (g *group) node(t *testing.T, name string) dev.NodeInfo {
	t.Helper()
	for _, n := range g.look(t).Nodes {
		if n.Name == name {
			return n
		}
	}
	t.Fatalf("there is no node %s", name)
	return dev.NodeInfo{}
}

// cluster runs understudy cluster as an operator on a node would.
func (g *group) cluster(t *testing.T, node string, args ...string) result {
	t.Helper()
	root := filepath.Join(g.dir, node)
	return understudy(t, filepath.Join(bin, "understudy"), append([]string{"--root", root, "cluster"}, args...)...)
}

// ask is cluster, whose JSON it reads.
func ask[T any](t *testing.T, g *group, node string, args ...string) (v T) {
	t.Helper()
	r := g.cluster(t, node, append(args, "--json")...)
	if r.code != 0 {
		t.Fatal(r)
	}
	if err := json.Unmarshal([]byte(r.out), &v); err != nil {
		t.Fatalf("%v: %v", r, err)
	}
	return v
}

// want checks how a command ended and that it said all of the words.
func want(t *testing.T, r result, code int, words ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d is not %d: %v", r.code, code, r)
	}
	for _, w := range words {
		if !strings.Contains(r.out+r.err, w) {
			t.Errorf("%q is missing: %v", w, r)
		}
	}
	if r.code != 0 && r.err == "" {
		t.Errorf("nothing on standard error: %v", r)
	}
}

// eventually waits until problem has none to tell.
func eventually(t *testing.T, what string, problem func() error) {
	t.Helper()
	end := time.Now().Add(soon)
	for {
		err := problem()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// healthy waits until the cluster, as a node sees it, has nothing wrong and as
// many members as given.
func (g *group) healthy(t *testing.T, from string, members int) (s rig.Status) {
	t.Helper()
	eventually(t, "the cluster is healthy", func() error {
		r := g.cluster(t, from, "status", "--json")
		s = rig.Status{}
		if err := json.Unmarshal([]byte(r.out), &s); err != nil {
			return fmt.Errorf("%v", r)
		}
		ailments := rig.Ailments(s)
		if members == 1 {
			ailments = alone(ailments)
		}
		if len(s.Nodes) != members {
			ailments = append(ailments, fmt.Sprintf("%d members, not %d", len(s.Nodes), members))
		}
		if len(ailments) > 0 {
			return errors.New(strings.Join(ailments, "; "))
		}
		return nil
	})
	return s
}

// alone leaves out what is as it must be where there is but one node.
func alone(ailments []string) (rest []string) {
	for _, a := range ailments {
		if a != "the sync set is 0 of []" {
			rest = append(rest, a)
		}
	}
	return rest
}

// kill sends a signal to one process of a cluster.
func kill(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}
