package proctree

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// oddly is a program whose name would mislead a careless reader of /proc.
func oddly(t *testing.T) *exec.Cmd {
	t.Helper()
	program := filepath.Join(t.TempDir(), "a) Z 1 (b")
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, text, 0o755); err != nil {
		t.Fatal(err)
	}
	command := exec.Command(program, "1000")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	return command
}

func TestRead(t *testing.T) {
	command := oddly(t)
	p, ok := Read(command.Process.Pid)
	if !ok || p.Parent != os.Getpid() || p.State == 'Z' || p.Started == 0 || !p.Alive() {
		t.Errorf("got %+v, %t", p, ok)
	}
	other := p
	other.Started++
	if other.Alive() {
		t.Error("a PID that was used again passes for the process before it")
	}
	_ = command.Process.Kill()
	_ = command.Wait()
	if p.Alive() {
		t.Error("alive after its death")
	}
	if p, ok := Read(command.Process.Pid); ok && p.Started == other.Started {
		t.Errorf("read a process that is gone: %+v", p)
	}
}

func TestDescendants(t *testing.T) {
	table := Table{
		1: {PID: 1}, 10: {PID: 10, Parent: 1}, 11: {PID: 11, Parent: 10}, 12: {PID: 12, Parent: 10, State: 'Z'},
		13: {PID: 13, Parent: 11}, 20: {PID: 20, Parent: 1},
	}
	if got := table.Descendants(10); !slices.Equal(got, []int{11, 13}) {
		t.Errorf("descendants %v", got)
	}
	if got := table.Children(10); !slices.Equal(got, []int{11, 12}) {
		t.Errorf("children %v", got)
	}
}

func TestSignalBelow(t *testing.T) {
	command := oddly(t)
	if err := SignalBelow(os.Getpid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	state := func() byte { p, _ := Read(command.Process.Pid); return p.State }
	if got := state(); got != 'T' {
		t.Errorf("state %c after SIGSTOP", got)
	}
	if err := SignalBelow(os.Getpid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); state() == 'T'; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still stopped after SIGCONT")
		}
	}
	if err := SignalBelow(os.Getpid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := state(); got != 'Z' && got != 0 {
		t.Errorf("state %c after SIGKILL", got)
	}
}
