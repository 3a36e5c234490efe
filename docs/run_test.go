package docs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/statefile"
)

// The README's tour, and the commands of dev mode in operations.md, are run as
// they stand, on a dev cluster of real components.
func TestTour(t *testing.T) {
	t.Parallel()
	s := newSession(t, "tour", "127.50.1.11", strings.NewReplacer(
		"understudy dev up", "understudy dev up --first-address 127.50.1.11",
		"127.0.0.1", "127.50.1.1", // 127.0.0.11 and those that follow it
	))
	for _, file := range documents {
		for _, b := range blocks(t, file) {
			if b.Lang == LangRun && (b.Attrs["on"] == "" || b.Attrs["on"] == "dev") {
				s.run(b)
			}
		}
	}
	s.atLeast(12)
}

// The commands for real hosts are run on four nodes that are installed and that
// no cluster is made of yet; delta is to be a runner. A block marked "again" shows lines that another one
// has, which is the one that is run.
func TestHosts(t *testing.T) {
	t.Parallel()
	s := newSession(t, "hosts", "127.50.1.21", strings.NewReplacer("10.0.0.1", "127.50.1.21", "10.0.0.2", "127.50.1.22", "10.0.0.3", "127.50.1.23", "10.0.0.4", "127.50.1.24"))
	s.install([]string{"alpha", "beta", "gamma"}, "delta")
	var run, again []Block
	for _, file := range documents {
		for _, b := range blocks(t, file) {
			_, repeated := b.Attrs["again"]
			switch {
			case b.Lang != LangRun || b.Attrs["on"] == "" || b.Attrs["on"] == "dev":
			case repeated:
				again = append(again, b)
			default:
				run = append(run, b)
			}
		}
	}
	for _, b := range run {
		s.run(b)
	}
	s.atLeast(10)
	for _, b := range again {
		for line := range strings.Lines(b.Text) {
			if !slices.ContainsFunc(run, func(r Block) bool { return r.Attrs["on"] == b.Attrs["on"] && strings.Contains(r.Text, line) }) {
				t.Errorf("%s: no block that is run has the line %q", b.Where, line)
			}
		}
	}
}

// The configuration in the documents is one that is accepted.
func TestConfiguration(t *testing.T) {
	found := 0
	for _, file := range documents {
		for _, b := range blocks(t, file) {
			if b.Lang != "yaml" {
				continue
			}
			found++
			root := t.TempDir()
			if err := statefile.WriteText(prepared(t, config.Paths(root).Config), []byte(b.Text), 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := config.Load(root); err != nil {
				t.Errorf("%s: %v", b.Where, err)
			}
		}
	}
	if found == 0 {
		t.Error("no document shows a configuration")
	}
}

func prepared(t *testing.T, file string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// session runs blocks on one cluster, as one person would.
type session struct {
	t       *testing.T
	dir     string // with bin/, and the cluster's folder
	cluster string // the cluster's folder
	adapt   *strings.Replacer
	exports string // what earlier blocks have exported
	copied  Clipboard
	ran     int
}

// tourDir is what the documents call the cluster's folder.
const tourDir = "/var/tmp/understudy-tour"

func newSession(t *testing.T, name, first string, adapt *strings.Replacer) *session {
	// A folder that PostgreSQL's user can enter, and short enough for sockets.
	dir, err := os.MkdirTemp("/tmp", "us-docs-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &session{t: t, dir: dir, cluster: filepath.Join(dir, name), adapt: adapt}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := dev.Down(ctx, s.cluster, false); err != nil {
			t.Errorf("processes of %s may be left: %v", first, err)
		}
		_ = os.RemoveAll(dir)
	})
	if err := os.Symlink(binaries(t), filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	return s
}

var built struct {
	sync.Once
	dir string
	err error
}

// binaries is a folder with understudy's binaries as they are now, and consul.
func binaries(t *testing.T) string {
	t.Helper()
	built.Do(func() {
		if built.dir, built.err = os.MkdirTemp("/tmp", "us-docs-bin-"); built.err != nil {
			return
		}
		if built.err = os.Chmod(built.dir, 0o755); built.err != nil {
			return
		}
		build := exec.Command("go", "build", "-tags", "noquic", "-o", built.dir+"/", "../cmd/...", "../example/notes")
		if out, err := build.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build: %w: %s", err, out)
			return
		}
		consul, err := exec.LookPath("consul")
		if err != nil {
			built.err = fmt.Errorf("%w: 'make setup' makes it", err)
			return
		}
		built.err = os.Symlink(consul, filepath.Join(built.dir, "consul"))
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.dir
}

// TestMain deletes the binaries that the tests shared.
func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// install makes nodes that are up and belong to no cluster, as hosts are on
// which the packages were installed.
func (s *session) install(managers []string, runners ...string) {
	s.t.Helper()
	c, err := dev.FindBinaries(filepath.Join(s.dir, "bin"))
	if err != nil {
		s.t.Fatal(err)
	}
	c.Dir = s.cluster
	for i, name := range slices.Concat(managers, runners) {
		n := dev.Node{Name: name, Address: fmt.Sprintf("127.50.1.%d", 21+i), Root: filepath.Join(s.cluster, name)}
		if i >= len(managers) {
			n.Kind = cluster.Runner
		}
		c.Nodes = append(c.Nodes, n)
	}
	if err := statefile.WriteMode(filepath.Join(s.cluster, "dev.json"), c, 0o644); err != nil {
		s.t.Fatal(err)
	}
	for _, n := range c.Nodes {
		if err := c.Install(s.t.Context(), n); err != nil {
			s.t.Fatal(err)
		}
		if err := dev.Start(s.t.Context(), c.Dir, n.Name); err != nil {
			s.t.Fatal(err)
		}
	}
}

// run runs a block as a script. A block for a named host acts as on that host.
func (s *session) run(b Block) {
	s.t.Helper()
	if _, root := b.Attrs["root"]; root && os.Geteuid() != 0 {
		s.t.Logf("%s: left out, because it needs root", b.Where)
		return
	}
	text := strings.ReplaceAll(s.adapt.Replace(b.Text), tourDir, s.cluster)
	text = s.copied.Paste(strings.ReplaceAll(text, "sudo ", ""))
	setup := "set -euo pipefail\n" + s.exports
	if host := b.Attrs["on"]; host != "" && host != "dev" {
		root := filepath.Join(s.cluster, host)
		setup += "export UNDERSTUDY_ROOT=" + root + " PATH=$PWD/bin:$PATH\n"
		for _, top := range []string{"/etc/understudy", "/var/lib/understudy", "/var/log/understudy", "/run/understudy"} {
			text = strings.ReplaceAll(text, top, root+top)
		}
	}
	out, err := s.script(setup + text)
	s.t.Logf("%s\n%s%s", b.Where, text, out)
	if err != nil {
		s.t.Fatalf("%s: %v", b.Where, err)
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "export ") {
			s.exports += line
		}
	}
	s.copied.Copy(out)
	s.ran++
	s.settle()
}

// scriptWithin bounds one block.
const scriptWithin = 3 * time.Minute

func (s *session) script(text string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), scriptWithin)
	defer cancel()
	command := exec.CommandContext(ctx, "bash", "-c", text)
	command.Dir = s.dir
	command.Env = append(os.Environ(), "UNDERSTUDY_ROOT=/")
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.WaitDelay = 5 * time.Second
	// A file, because a pipe would stay open as long as the cluster that the
	// script leaves behind.
	file, err := os.CreateTemp(s.dir, "out-")
	if err != nil {
		return "", err
	}
	defer file.Close()
	command.Stdout, command.Stderr = file, file
	err = command.Run()
	var out bytes.Buffer
	if _, seekErr := file.Seek(0, 0); seekErr != nil {
		return "", seekErr
	}
	if _, readErr := out.ReadFrom(file); readErr != nil {
		return "", readErr
	}
	return out.String(), err
}

// settleWithin bounds how long the cluster may take to be whole again between
// two blocks.
const settleWithin = time.Minute

// looks is how often in a row the cluster must be seen to be whole: the active
// node's own picture of its standbys is a moment older than theirs.
const looks = 10

// settle waits until one member is active and all others that are up follow it:
// a person reads for longer than that. Before the cluster is made, and after it
// was taken down, there is nothing to wait for.
func (s *session) settle() {
	s.t.Helper()
	deadline := time.Now().Add(settleWithin)
	for seen := 0; seen < looks; time.Sleep(100 * time.Millisecond) {
		whole, now := s.whole()
		switch {
		case whole:
			seen++
		case time.Now().After(deadline):
			s.t.Fatalf("the cluster is not whole %s after the block: %s", settleWithin, now)
		default:
			seen = 0
		}
	}
}

func (s *session) whole() (bool, string) {
	if _, err := os.Stat(filepath.Join(s.cluster, "dev.json")); err != nil {
		return true, ""
	}
	info, err := dev.Describe(s.t.Context(), s.cluster)
	if err != nil {
		return false, err.Error()
	}
	leaders, others := 0, 0
	for _, n := range info.Nodes {
		record, err := node.LoadRecord(config.Paths(n.Root).Membership())
		if err != nil {
			return false, err.Error()
		}
		switch {
		case n.State == dev.StateDown || n.State == dev.StateFrozen || !record.Member || record.Removed:
		case n.State == dev.StateLeader:
			leaders++
		case n.State == string(cluster.Executing):
		default:
			others++
			if !follows(n) {
				return false, n.Name + " is " + n.State + " and does not stream"
			}
		}
	}
	return leaders == 1 || leaders+others == 0, fmt.Sprintf("%d nodes are active and %d follow", leaders, others)
}

// follows asks a node whether it streams from the active one.
func follows(n dev.NodeInfo) bool {
	client := http.Client{Timeout: time.Second}
	r, err := client.Get(strings.TrimSuffix(n.StatusURL, "/status") + "/replica")
	if err != nil {
		return false
	}
	defer r.Body.Close()
	var said struct{ Role string }
	return json.NewDecoder(r.Body).Decode(&said) == nil && r.StatusCode == http.StatusOK
}

// atLeast makes sure that the documents were read at all.
func (s *session) atLeast(n int) {
	s.t.Helper()
	if s.ran < n {
		s.t.Errorf("only %d blocks were run", s.ran)
	}
}
