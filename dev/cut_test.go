package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// talkers are two nodes that talk to each other all the time.
func talkers(t *testing.T, first string) *Cluster {
	t.Helper()
	peers, err := newNodes("", 2, 0, first)
	if err != nil {
		t.Fatal(err)
	}
	c := bare(t, first, 2, func(n Node) map[string]string {
		peer := peers[0].Address
		if n.Address == peer {
			peer = peers[1].Address
		}
		return map[string]string{"talk.service": fmt.Sprintf(`[Service]
ExecStart=%s
Environment=UNDERSTUDY_TEST_ROLE=talk TALK_OWN=ADDRESS TALK_PEER=%s TALK_FILE=ROOT/heard
`, os.Args[0], peer)}
	})
	for _, n := range c.Nodes {
		heardAll(t, n, hear(t, n))
	}
	return c
}

func hear(t *testing.T, n Node) (h heard) {
	t.Helper()
	eventually(t, n.Name+" has written what it heard", func() bool {
		text, err := os.ReadFile(filepath.Join(n.Root, "heard"))
		return err == nil && json.Unmarshal(text, &h) == nil
	})
	return h
}

// heardAll waits until a node hears its peer in every way again.
func heardAll(t *testing.T, n Node, before heard) {
	t.Helper()
	eventually(t, n.Name+" hears its peer", func() bool {
		h := hear(t, n)
		return h.Datagram > before.Datagram+5 && h.Stream > before.Stream+5 && h.Accepted > before.Accepted
	})
}

// hasSent waits until a node has sent another n numbers.
func hasSent(t *testing.T, n Node, more int) {
	t.Helper()
	before := hear(t, n).Sent
	eventually(t, n.Name+" has sent", func() bool { return hear(t, n).Sent > before+more })
}

func needRoot(t *testing.T, c *Cluster) bool {
	t.Helper()
	if os.Geteuid() == 0 {
		return true
	}
	if err := Cut(t.Context(), c.Dir, "node1", "node2", false); !errors.Is(err, ErrCannotCut) {
		t.Errorf("cut as an ordinary user: %v, want %v", err, ErrCannotCut)
	}
	return false
}

func TestCutBothWays(t *testing.T) {
	c := talkers(t, "127.10.4.41")
	if !needRoot(t, c) {
		return
	}
	a, b := c.Nodes[0], c.Nodes[1]
	if err := Cut(t.Context(), c.Dir, a.Name, b.Name, false); err != nil {
		t.Fatal(err)
	}
	hasSent(t, a, 5) // what was under way has arrived
	hasSent(t, b, 5)
	atA, atB := hear(t, a), hear(t, b)
	hasSent(t, a, 60)
	hasSent(t, b, 60)
	for name, c := range map[string]struct{ before, after heard }{"node1": {atA, hear(t, a)}, "node2": {atB, hear(t, b)}} {
		c.after.Sent = c.before.Sent
		if c.before != c.after {
			t.Errorf("%s has heard its peer through the cut: %+v, then %+v", name, c.before, c.after)
		}
	}
	if err := Heal(t.Context(), c.Dir); err != nil {
		t.Fatal(err)
	}
	heardAll(t, a, atA)
	heardAll(t, b, atB)
	if err := Heal(t.Context(), c.Dir); err != nil {
		t.Errorf("heal without a cut: %v", err)
	}
}

func TestCutOneWay(t *testing.T) {
	c := talkers(t, "127.10.4.43")
	if !needRoot(t, c) {
		return
	}
	a, b := c.Nodes[0], c.Nodes[1]
	if err := Cut(t.Context(), c.Dir, a.Name, b.Name, true); err != nil {
		t.Fatal(err)
	}
	hasSent(t, a, 5)
	atA, atB := hear(t, a), hear(t, b)
	hasSent(t, a, 60)
	hasSent(t, b, 60)
	if after := hear(t, b); after.Datagram != atB.Datagram || after.Stream != atB.Stream {
		t.Errorf("node2 has heard node1 through the cut: %+v, then %+v", atB, after)
	}
	// A connection stalls, for want of acknowledgements; datagrams do not.
	if after := hear(t, a); after.Datagram < atA.Datagram+30 {
		t.Errorf("node1 has not heard node2: %+v, then %+v", atA, after)
	}

	// The other direction is cut in addition, and a node that comes back is
	// behind the cut again.
	if err := Cut(t.Context(), c.Dir, b.Name, a.Name, true); err != nil {
		t.Fatal(err)
	}
	if err := Kill(t.Context(), c.Dir, b.Name, All); err != nil {
		t.Fatal(err)
	}
	if err := Start(t.Context(), c.Dir, b.Name); err != nil {
		t.Fatal(err)
	}
	hasSent(t, b, 60)
	atA = hear(t, a)
	hasSent(t, b, 60)
	if after := hear(t, a); after.Datagram != atA.Datagram || after.Accepted != atA.Accepted {
		t.Errorf("node1 has heard the new node2 through the cut: %+v, then %+v", atA, after)
	}
	if err := Heal(t.Context(), c.Dir); err != nil {
		t.Fatal(err)
	}
	eventually(t, "node1 hears the new node2", func() bool {
		h := hear(t, a)
		return h.Datagram != atA.Datagram && h.Accepted > atA.Accepted
	})
}

func TestCutRefuses(t *testing.T) {
	c := bare(t, "127.10.4.45", 2, func(Node) map[string]string { return nil })
	if err := Cut(t.Context(), c.Dir, "node1", "node1", false); !errors.Is(err, ErrUsage) {
		t.Errorf("a node from itself: %v", err)
	}
	if err := Cut(t.Context(), c.Dir, "node1", "node9", false); !errors.Is(err, ErrNoNode) {
		t.Errorf("a node that does not exist: %v", err)
	}
}
