package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/dev/rig"
)

// files follows what is written into the folders.
func files(t *testing.T, g *group) {
	s := g.healthy(t, "node1", 3)
	first := s.Active
	g.write(t, first, "a.txt", "from the first active")
	g.arrives(t, "a.txt", "from the first active", "node1", "node2", "node3")
	// A command waits until it is there.
	long := strings.Repeat("from the first active, too\n", 1<<20)
	g.write(t, first, "long.txt", long)
	want(t, g.cluster(t, "node2", "nodes", "wait"), 0, "wait for node1, node2, node3")
	for _, n := range s.Nodes {
		if text, err := os.ReadFile(g.at(t, n.Name, "long.txt")); err != nil || string(text) != long {
			t.Errorf("%s has %d bytes of long.txt when all have waited: %v", n.Name, len(text), err)
		}
	}
	// A standby's own file is not spread, and is kept.
	g.write(t, s.Standbys()[0], "stray.txt", "a standby's")
	// What the active wrote before it went down and has not sent stays its own.
	pid := g.node(t, first).Pids["file-sync"]
	kill(t, pid, syscall.SIGSTOP)
	g.write(t, first, "unsent.txt", "never sent")
	g.must(t, "kill", first)
	g.epochAfter(t, s)
	want(t, g.cluster(t, s.Standbys()[0], "nodes", "wait", "--timeout", "3s", first), 4, first+" does not answer")
	g.write(t, g.activeNow(t, s.Standbys()[0]), "b.txt", "from the second active")
	g.arrives(t, "b.txt", "from the second active", s.Standbys()...)
	g.must(t, "start", first)
	g.arrives(t, "b.txt", "from the second active", first)
	second := g.healthy(t, "node1", 3)
	g.write(t, second.Active, "c.txt", "later")
	g.arrives(t, "c.txt", "later", "node1", "node2", "node3")
	eventually(t, "the unsent file leaves the folder", func() error {
		if _, err := os.Stat(g.at(t, first, "unsent.txt")); err == nil {
			return errors.New("it is there")
		}
		return nil
	})
	for _, n := range second.Nodes {
		for _, name := range []string{"unsent.txt", "stray.txt"} {
			if _, err := os.Stat(g.at(t, n.Name, name)); err == nil && n.Name != s.Standbys()[0] {
				t.Errorf("%s was spread to %s", name, n.Name)
			}
		}
	}
	if !kept(t, g.node(t, first).Root, "never sent") {
		t.Errorf("no version of unsent.txt is kept on %s", first)
	}
	if _, err := os.Stat(g.at(t, s.Standbys()[0], "stray.txt")); err != nil && !kept(t, g.node(t, s.Standbys()[0]).Root, "a standby's") {
		t.Errorf("no version of stray.txt is kept on %s", s.Standbys()[0])
	}
}

// at is a file in the folder of a node.
func (g *group) at(t *testing.T, node, name string) string {
	t.Helper()
	return filepath.Join(g.node(t, node).Folders[0], name)
}

func (g *group) write(t *testing.T, node, name, text string) {
	t.Helper()
	if err := os.WriteFile(g.at(t, node, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// arrives waits until a file with that text is on all of the nodes.
func (g *group) arrives(t *testing.T, name, text string, nodes ...string) {
	t.Helper()
	for _, n := range nodes {
		eventually(t, name+" arrives on "+n, func() error {
			got, err := os.ReadFile(g.at(t, n, name))
			if err == nil && string(got) != text {
				err = fmt.Errorf("it is %q", got)
			}
			return err
		})
	}
}

func (g *group) activeNow(t *testing.T, from string) string {
	t.Helper()
	return ask[rig.Status](t, g, from, "status").Active
}

// kept says whether a file of that text is among the kept versions of a node.
func kept(t *testing.T, root, text string) (found bool) {
	t.Helper()
	err := filepath.WalkDir(config.Paths(root).FileSync(), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		got, err := os.ReadFile(path)
		found = found || string(got) == text
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
