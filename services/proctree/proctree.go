// Package proctree reads the tree of processes from /proc.
package proctree

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// Process is one process at the moment of a Snapshot.
type Process struct {
	PID     int    `json:"pid"`
	Parent  int    `json:"parent"`
	Session int    `json:"session"`
	State   byte   `json:"-"`       // R, S, D, T (stopped), Z (a zombie), ...
	Started uint64 `json:"started"` // ticks since boot: with the PID, the identity of a process
}

// Table is all processes by PID.
type Table map[int]Process

// Snapshot reads all processes. It is not atomic: one that is forked meanwhile
// may be missing.
func Snapshot() (Table, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("read processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("read processes: %w", err)
	}
	table := make(Table, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if p, ok := Read(pid); ok {
			table[pid] = p
		}
	}
	return table, nil
}

// Read returns one process, or false when there is none of that PID.
func Read(pid int) (Process, bool) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Process{}, false
	}
	// The name in parentheses may hold anything; the fields come after it.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return Process{}, false
	}
	number := func(i int) int { n, _ := strconv.Atoi(string(fields[i])); return n }
	started, _ := strconv.ParseUint(string(fields[19]), 10, 64)
	return Process{PID: pid, Parent: number(1), Session: number(3), State: fields[0][0], Started: started}, true
}

// Alive says whether the process still is the one that it was.
func (p Process) Alive() bool {
	now, ok := Read(p.PID)
	return ok && now.Started == p.Started && now.State != 'Z'
}

// Children returns the PIDs of the processes whose parent is pid, sorted.
func (t Table) Children(pid int) []int {
	var pids []int
	for _, p := range t {
		if p.Parent == pid {
			pids = append(pids, p.PID)
		}
	}
	slices.Sort(pids)
	return pids
}

// Descendants returns the PIDs of all processes below pid, parents first. Zombies
// are left out: nothing can be done to them.
func (t Table) Descendants(pid int) []int {
	children := make(map[int][]int)
	for _, p := range t {
		if p.State != 'Z' {
			children[p.Parent] = append(children[p.Parent], p.PID)
		}
	}
	var pids []int
	queue := []int{pid}
	for len(queue) > 0 {
		below := children[queue[0]]
		slices.Sort(below)
		queue = append(queue[1:], below...)
		pids = append(pids, below...)
	}
	return pids
}

// maxRounds bounds how often SignalBelow looks for processes that were forked
// while it was at work. Every round stops or kills a whole generation.
const maxRounds = 100

// SignalBelow sends SIGSTOP or SIGKILL to every process below pid, again until
// none is left that has not got it. What such a signal has reached forks no more, so
// that this ends. Another signal is sent once.
func SignalBelow(pid int, sig syscall.Signal) error {
	for round := range maxRounds {
		// What was killed takes a moment to be gone.
		time.Sleep(min(time.Duration(round)*time.Millisecond, 50*time.Millisecond))
		table, err := Snapshot()
		if err != nil {
			return err
		}
		sent := false
		for _, p := range table.Descendants(pid) {
			if sig == syscall.SIGSTOP && table[p].State == 'T' {
				continue
			}
			if err := syscall.Kill(p, sig); err == nil {
				sent = true
			} else if err != syscall.ESRCH {
				return fmt.Errorf("signal process %d: %w", p, err)
			}
		}
		if !sent || (sig != syscall.SIGSTOP && sig != syscall.SIGKILL) {
			return nil
		}
	}
	return fmt.Errorf("processes below %d do not react to %s", pid, sig)
}
