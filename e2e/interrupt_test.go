package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/config"
)

// The steps of start and of join, as they are shown.
var (
	startSteps = []string{"check this host", "make the cluster's CA", "make PostgreSQL ready", "start Consul", "record the cluster", "start the daemons", "become active"}
	joinSteps  = []string{"check this host", "ask to be let in", "configure PostgreSQL", "start Consul", "clone the database", "start the daemons", "follow the active"}
)

// TestInterrupts ends start and join at every step, by Ctrl-C and by SIGKILL. The
// same command again goes on, and in the end there is a healthy cluster that
// holds what the first host had.
func TestInterrupts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		network           string
		starting, joining syscall.Signal
	}{
		"killed": {"127.40.5.", syscall.SIGKILL, syscall.SIGINT},
		"asked":  {"127.40.6.", syscall.SIGINT, syscall.SIGKILL},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := hosts(t, name, c.network, 2)
			sql(t, g.node(t, "node1"), "create table letters as select n, md5(n::text) as text from generate_series(1, 100000) n")
			g.interrupted(t, "node1", c.starting, startSteps, []string{"start", "--cluster-host-ip", g.address(t, "node1"), "--cluster-node-name", "node1"})
			g.healthy(t, "node1", 1)
			g.interrupted(t, "node2", c.joining, joinSteps, g.joinArgs(t, "node2", g.token(t, "node1"), "node1"))
			g.healthy(t, "node2", 2)
			sql(t, g.node(t, "node2"), "do $$ begin if (select count(*) from letters) <> 100000 then raise 'lost'; end if; end $$")
			if peers, _ := g.raftPeers(t, "node1"); !slices.Equal(slices.Sorted(slices.Values(peers)), []string{"node1", "node2"}) {
				t.Errorf("the Raft peers are %v", peers)
			}
		})
	}
}

// interrupted runs a command again and again, and each time lets it come one
// step further before it gets the signal, first as the step begins and then in
// the midst of it. The last run is left alone.
func (g *group) interrupted(t *testing.T, node string, sig syscall.Signal, steps, args []string) {
	t.Helper()
	for i := range steps {
		for _, after := range []time.Duration{0, 150 * time.Millisecond} {
			r := g.until(t, node, args, steps[:i], after, sig)
			switch {
			case r.code == 0: // it was quicker
			case sig == syscall.SIGINT && r.code == 1 && strings.Contains(r.err, "interrupted; 'understudy cluster "+args[0]+"' with the same options goes on from here"):
			case sig == syscall.SIGKILL && r.code == -1:
			case r.code == -1 && r.err == "": // before it minded signals
			default:
				t.Fatalf("%v after %q: %v", sig, steps[:i], r)
			}
			if r.code == 0 {
				return
			}
		}
	}
	want(t, g.cluster(t, node, args...), 0, node+" is ")
}

// done says whether an earlier run has done a step.
func (g *group) done(t *testing.T, node, step string) bool {
	record, err := os.ReadFile(config.Paths(filepath.Join(g.dir, node)).Membership())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	return strings.Contains(string(record), `"`+step)
}

// until runs a command until the last of some steps is done, waits a moment,
// sends a signal, and waits for the command's end. Steps that an earlier run has
// done are not done again, and not waited for.
func (g *group) until(t *testing.T, node string, args, steps []string, after time.Duration, sig syscall.Signal) result {
	t.Helper()
	words := append([]string{"--root", filepath.Join(g.dir, node), "cluster"}, args...)
	command := exec.Command(filepath.Join(bin, "understudy"), words...)
	var out, problem bytes.Buffer
	command.Stdout = &out
	read, write := io.Pipe()
	command.Stderr = io.MultiWriter(&problem, write)
	waiting := len(steps) > 0 && !g.done(t, node, steps[len(steps)-1])
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	reached := make(chan struct{})
	go func() {
		lines := bufio.NewScanner(read)
		if !waiting {
			close(reached)
		}
		for lines.Scan() {
			if waiting && strings.HasPrefix(lines.Text(), "ok") && strings.Contains(lines.Text(), steps[len(steps)-1]) {
				waiting = false
				close(reached)
			}
		}
	}()
	go func() {
		_ = command.Wait() // how it ended is in ProcessState
		_ = write.Close()
		close(ended)
	}()
	select {
	case <-reached:
	case <-ended:
	case <-time.After(soon):
		_ = command.Process.Kill()
		<-ended
		t.Fatalf("%q is not reached: %s%s", steps, out.String(), problem.String())
	}
	select {
	case <-ended:
	case <-time.After(after):
		_ = command.Process.Signal(sig) // it may have ended just now
	}
	select {
	case <-ended:
	case <-time.After(soon):
		_ = command.Process.Kill()
		<-ended
		t.Errorf("%v does not end it: %s%s", sig, out.String(), problem.String())
	}
	return result{strings.Join(words, " "), out.String(), problem.String(), command.ProcessState.ExitCode()}
}
