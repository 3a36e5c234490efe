package bench

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/understudy-ha/understudy/dev"
)

// Idle is what the daemons cost while nothing happens.
type Idle struct {
	Seconds   float64    `json:"seconds"`
	Nodes     []IdleNode `json:"nodes"`
	CPU       float64    `json:"cpu_percent_worst"` // of one core, all daemons of the worst node
	RSS       float64    `json:"rss_mib_worst"`
	TargetCPU float64    `json:"target_cpu_percent"`
	TargetRSS float64    `json:"target_rss_mb"`
}

// IdleNode are the daemons of one node.
type IdleNode struct {
	Node    string       `json:"node"`
	CPU     float64      `json:"cpu_percent"`
	RSS     float64      `json:"rss_mib"`
	Daemons []IdleDaemon `json:"daemons"`
}

// IdleDaemon is one daemon.
type IdleDaemon struct {
	Name string  `json:"name"`
	CPU  float64 `json:"cpu_percent"` // of one core
	RSS  float64 `json:"rss_mib"`
}

var daemons = []string{"check-runner", "consul-watcher", "file-sync", "handler-runner", "postgres-helper"}

const (
	settle  = 5 * time.Second
	idleFor = 30 * time.Second
	// Linux tells processor time in hundredths of a second (USER_HZ), whatever
	// the kernel's own clock.
	ticksPerSecond = 100
	mebibyte       = 1 << 20
)

// idle watches the daemons of a healthy cluster that nobody writes to.
func (b *bench) idle(ctx context.Context) error {
	if _, err := b.healthy(ctx, 0); err != nil {
		return err
	}
	if err := pause(ctx, settle); err != nil {
		return err
	}
	b.say("watching the daemons at rest for %.0f s", idleFor.Seconds())
	info, err := dev.Describe(ctx, b.Dir)
	if err != nil {
		return err
	}
	before, err := ticks(info)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := pause(ctx, idleFor); err != nil {
		return err
	}
	after, err := ticks(info)
	if err != nil {
		return fmt.Errorf("a daemon has ended meanwhile: %w", err)
	}
	took := time.Since(began)
	out := &Idle{Seconds: took.Seconds(), TargetCPU: 2, TargetRSS: 160}
	for _, n := range info.Nodes {
		node := IdleNode{Node: n.Name}
		for _, name := range daemons {
			pid := n.Pids[name]
			rss, err := residentBytes(pid)
			if err != nil {
				return err
			}
			d := IdleDaemon{Name: name, RSS: float64(rss) / mebibyte,
				CPU: 100 * float64(after[pid]-before[pid]) / ticksPerSecond / took.Seconds()}
			node.Daemons = append(node.Daemons, d)
			node.CPU, node.RSS = node.CPU+d.CPU, node.RSS+d.RSS
		}
		out.Nodes = append(out.Nodes, node)
		out.CPU, out.RSS = max(out.CPU, node.CPU), max(out.RSS, node.RSS)
	}
	b.report.Idle = out
	return nil
}

// ticks returns the processor time of every daemon, by PID.
func ticks(info dev.Info) (map[int]int64, error) {
	used := make(map[int]int64)
	for _, n := range info.Nodes {
		for _, name := range daemons {
			pid, ok := n.Pids[name]
			if !ok {
				return nil, fmt.Errorf("%s does not run on %s", name, n.Name)
			}
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil {
				return nil, fmt.Errorf("look at %s on %s: %w", name, n.Name, err)
			}
			if used[pid], err = parseTicks(string(text)); err != nil {
				return nil, fmt.Errorf("look at %s on %s: %w", name, n.Name, err)
			}
		}
	}
	return used, nil
}

// parseTicks adds utime and stime, fields 14 and 15 of /proc/PID/stat (proc(5)).
// The name in field 2 may have spaces and brackets.
func parseTicks(stat string) (int64, error) {
	end := strings.LastIndex(stat, ")")
	fields := strings.Fields(stat[end+1:])
	if end < 0 || len(fields) < 13 {
		return 0, fmt.Errorf("parse process state: %q", stat)
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("parse process state: %q", stat)
	}
	return user + system, nil
}

// residentBytes is the memory that a process has in use (proc(5), statm).
func residentBytes(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, fmt.Errorf("look at the memory of process %d: %w", pid, err)
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0, fmt.Errorf("look at the memory of process %d: %q", pid, text)
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("look at the memory of process %d: %w", pid, err)
	}
	return pages * int64(os.Getpagesize()), nil
}

func (i Idle) print(w io.Writer) {
	fmt.Fprintf(w, "\nour daemons at rest, %.0f s: at worst %.1f%% of one core (target %.0f%%), %.0f MiB (target %.0f MB) a node\n\n",
		i.Seconds, i.CPU, i.TargetCPU, i.RSS, i.TargetRSS)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "NODE\tALL\t%s\n", strings.ToUpper(strings.Join(daemons, "\t")))
	for _, n := range i.Nodes {
		line := fmt.Sprintf("%s\t%.1f%% %.0f MiB", n.Node, n.CPU, n.RSS)
		for _, d := range n.Daemons {
			line += fmt.Sprintf("\t%.1f%% %.0f MiB", d.CPU, d.RSS)
		}
		fmt.Fprintln(t, line)
	}
	t.Flush()
}
