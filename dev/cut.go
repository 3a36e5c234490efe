package dev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/understudy-ha/understudy/statefile"
)

// Who sends a packet on a loopback interface cannot be told by its address: a
// client that binds none sends from 127.0.0.1. So the processes of each node are
// in a control group of their own. A packet is marked where it goes out with the
// node that its socket is of, and dropped where it comes in when the receiving
// socket is of the other node. Packets that the kernel sends without a socket (a
// reset, the end of a connection in TIME_WAIT), and those for which there is none
// on the receiving side, are told by the address of the node, which all that
// listens on a node has.

// cut is a direction in which no packet gets through.
type cut struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// ErrCannotCut is the error of a machine, or a user, that cannot cut.
var ErrCannotCut = errors.New("packets between nodes cannot be dropped here")

const cutsFile = "cuts.json"

// Cut drops every packet from node a to node b and, unless oneWay, those from b to
// a. It adds to the cuts that there are. Connections that exist stall; nothing is told
// to either side. The error wraps ErrCannotCut when this user is not root, or
// nftables or control groups (version 2) are missing.
func Cut(ctx context.Context, dir, a, b string, oneWay bool) error {
	c, err := Open(dir)
	if err != nil {
		return err
	}
	for _, name := range []string{a, b} {
		if _, err := c.node(name); err != nil {
			return fmt.Errorf("cut: %w", err)
		}
	}
	if a == b {
		return fmt.Errorf("cut: %w: a node cannot be cut from itself", ErrUsage)
	}
	if err := c.canCut(); err != nil {
		return fmt.Errorf("cut %s from %s: %w", a, b, err)
	}
	cuts, err := c.cuts()
	if err != nil {
		return err
	}
	wanted := []cut{{a, b}}
	if !oneWay {
		wanted = append(wanted, cut{b, a})
	}
	for _, w := range wanted {
		if !slices.Contains(cuts, w) {
			cuts = append(cuts, w)
		}
	}
	rules, err := c.rules(cuts)
	if err != nil {
		return err
	}
	if err := nft(ctx, rules); err != nil {
		return fmt.Errorf("cut %s from %s: %w", a, b, err)
	}
	return statefile.WriteMode(filepath.Join(c.Dir, cutsFile), cuts, 0o644)
}

// Heal undoes all cuts. Without cuts it does nothing.
func Heal(ctx context.Context, dir string) error {
	c, err := Open(dir)
	if err != nil {
		return err
	}
	return c.dropCuts(ctx)
}

func (c *Cluster) cuts() ([]cut, error) {
	cuts, err := statefile.Read[[]cut](filepath.Join(c.Dir, cutsFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read cuts: %w", err)
	}
	return cuts, nil
}

func (c *Cluster) dropCuts(ctx context.Context) error {
	cuts, err := c.cuts()
	if err != nil || len(cuts) == 0 {
		return err
	}
	if err := c.canCut(); err != nil {
		return fmt.Errorf("heal: %w", err)
	}
	if err := nft(ctx, c.withoutTable()); err != nil {
		return fmt.Errorf("heal: %w", err)
	}
	if err := os.Remove(filepath.Join(c.Dir, cutsFile)); err != nil {
		return fmt.Errorf("heal: %w", err)
	}
	return nil
}

func (c *Cluster) canCut() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: it needs root; start the cluster and this command with sudo", ErrCannotCut)
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return fmt.Errorf("%w: nft is not there; install the package nftables", ErrCannotCut)
	}
	mount := cgroupMount()
	if mount != cgroupBase && !strings.HasPrefix(mount, cgroupBase+"/") {
		return fmt.Errorf("%w: control groups (version 2) are not mounted below %s", ErrCannotCut, cgroupBase)
	}
	return nil
}

func (c *Cluster) table() string { return "understudy_dev_" + c.hash() }

// withoutTable deletes the table, whether it is there or not.
func (c *Cluster) withoutTable() string {
	return fmt.Sprintf("table inet %[1]s\ndelete table inet %[1]s\n", c.table())
}

// markBase is the upper part of the marks, so that they are nobody else's.
const markBase = 0x5d000000

// rules is the whole table for a list of cuts; it takes the place of the one
// before in one step.
func (c *Cluster) rules(cuts []cut) (string, error) {
	mount := cgroupMount()
	group := func(name string) (string, Node, error) {
		n, err := c.node(name)
		if err != nil {
			return "", Node{}, err
		}
		dir := c.cgroup(n)
		// The rule needs the group; a node that is down gets into it later.
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", Node{}, fmt.Errorf("make control group: %w", err)
		}
		level := strings.Count(strings.TrimPrefix(dir, mount+"/"), "/") + 1
		path := strings.TrimPrefix(dir, cgroupBase+"/")
		return fmt.Sprintf("socket cgroupv2 level %d %q", level, path), n, nil
	}
	var out, in strings.Builder
	marked := make(map[string]bool)
	for _, cut := range cuts {
		fromSocket, from, err := group(cut.From)
		if err != nil {
			return "", err
		}
		toSocket, to, err := group(cut.To)
		if err != nil {
			return "", err
		}
		mark := fmt.Sprintf("0x%x", markBase+1+slices.Index(c.Nodes, from))
		if !marked[cut.From] {
			marked[cut.From] = true
			fmt.Fprintf(&out, "\t\t%s meta mark set %s\n", fromSocket, mark)
		}
		for _, sender := range []string{"meta mark " + mark, "ip saddr " + from.Address} {
			for _, receiver := range []string{toSocket, "ip daddr " + to.Address} {
				fmt.Fprintf(&in, "\t\t%s %s counter drop\n", sender, receiver)
			}
		}
	}
	return fmt.Sprintf(`%stable inet %s {
	chain out {
		type filter hook output priority mangle;
%s	}
	chain in {
		type filter hook input priority filter;
%s	}
}
`, c.withoutTable(), c.table(), out.String(), in.String()), nil
}

func nft(ctx context.Context, rules string) error {
	command := exec.CommandContext(ctx, "nft", "-f", "-")
	command.Stdin = strings.NewReader(rules)
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, &out
	if err := command.Run(); err != nil {
		return fmt.Errorf("set rules with nft: %w: %s", err, strings.TrimSpace(out.String()))
	}
	return nil
}

// cgroupBase is where nft looks for control groups.
const cgroupBase = "/sys/fs/cgroup"

// cgroupMount is where control groups of version 2 are mounted; empty when they
// are not.
func cgroupMount() string {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1]
		}
	}
	return ""
}

// cgroup is the folder of a node's control group; empty where this user cannot
// have one. Only cuts need it.
func (c *Cluster) cgroup(n Node) string {
	mount := cgroupMount()
	if os.Geteuid() != 0 || mount == "" {
		return ""
	}
	parent := filepath.Join(mount, "understudy-dev-"+c.hash())
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "" // mounted read-only, as in a container
	}
	return filepath.Join(parent, n.Name)
}

// dropCgroups deletes the control groups. That one is empty also shows that no
// process of the node is left.
func (c *Cluster) dropCgroups(ctx context.Context) error {
	parent := ""
	for _, n := range c.Nodes {
		dir := c.cgroup(n)
		if dir == "" {
			return nil
		}
		parent = filepath.Dir(dir)
		if err := removeCgroup(ctx, dir); err != nil {
			return err
		}
	}
	return removeCgroup(ctx, parent)
}

// removeCgroup deletes a control group, once the last process that is ending in
// it has ended.
func removeCgroup(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) {
			return fmt.Errorf("delete control group: %w", err)
		}
		select {
		case <-ctx.Done():
			procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			return fmt.Errorf("delete control group: processes %q are left in %s", strings.Fields(string(procs)), dir)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
