package lab

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// grace is how long the output of a command that was killed may take to end.
const grace = 5 * time.Second

// command is a process of its own group, all of which is killed when ctx ends.
func command(ctx context.Context, argv ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = grace
	return c
}

// run runs a command to its end and returns what it said, both outputs in one.
// The error ends with that text.
func run(ctx context.Context, what string, argv ...string) (string, error) {
	c := command(ctx, argv...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return out.String(), fmt.Errorf("%s: %w: %s", what, err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}

// until asks again and again until ok, and returns the last reason when ctx ends.
func until(ctx context.Context, what string, ok func() error) error {
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w: %w", what, ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
