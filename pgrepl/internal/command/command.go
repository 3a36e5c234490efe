// Package command is the one place from which pgrepl runs a program.
package command

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Runner runs programs as one system user.
type Runner struct {
	UID, GID int                 // of that user
	cred     *syscall.Credential // nil: we are that user already
	refused  error               // why we cannot act as that user
}

// As returns a Runner for the named system user. Only root can be another user
// than itself; for anybody else the Runner refuses to do anything.
func As(name string) (Runner, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return Runner{}, fmt.Errorf("look up system user: %w", err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return Runner{}, fmt.Errorf("look up system user %s: %w", name, err)
	}
	r := Runner{UID: uid, GID: gid}
	switch os.Geteuid() {
	case uid:
		return r, nil
	case 0:
		r.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: groups(u)}
		return r, nil
	}
	r.refused = fmt.Errorf("this process is neither root nor %s", name)
	return r, nil
}

func groups(u *user.User) []uint32 {
	ids, err := u.GroupIds()
	if err != nil {
		return nil
	}
	var out []uint32
	for _, id := range ids {
		if n, err := strconv.ParseUint(id, 10, 32); err == nil {
			out = append(out, uint32(n))
		}
	}
	return out
}

// Own gives a path to the system user, when we are root and it is another.
func (r Runner) Own(path string) error {
	if r.cred == nil {
		return r.refused
	}
	return os.Lchown(path, r.UID, r.GID)
}

// Attr is how programs of this user are started: in a process group of their
// own, and killed when the thread that started them ends.
func (r Runner) Attr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: r.cred}
}

// Op is one program to run.
type Op struct {
	Label string            // what it does, for errors: "clone the data directory"
	Argv  []string          // program with its path, and arguments
	Env   []string          // beside a minimal environment with LC_ALL=C
	Stdin string            // empty: /dev/null
	Line  func(line string) // gets each line of stderr as it comes; may be nil
	Out   io.Writer         // gets standard output; nil: Run returns it
}

// stopGrace is how long a program may take to end by SIGTERM.
const stopGrace = 3 * time.Second

// Error is a program that failed.
type Error struct {
	Label  string
	Output string // the end of stderr
	Err    error
}

func (e *Error) Error() string {
	msg := e.Label + ": " + e.Err.Error()
	if e.Output != "" {
		msg += ": " + e.Output
	}
	return msg
}

func (e *Error) Unwrap() error { return e.Err }

// Run runs the program and returns its standard output. When the context ends
// first, the whole process group gets SIGTERM and then SIGKILL, and the error
// wraps the context's. When this process dies, so does the program.
func (r Runner) Run(ctx context.Context, op Op) (string, error) {
	type result struct {
		out string
		err error
	}
	done := make(chan result, 1)
	go func() {
		// The kernel sends the parent-death signal when the starting thread
		// ends, so that thread is kept until the program has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		out, err := r.run(ctx, op)
		done <- result{out, err}
	}()
	got := <-done
	return got.out, got.err
}

func (r Runner) run(ctx context.Context, op Op) (string, error) {
	if err := cmp.Or(r.refused, ctx.Err()); err != nil {
		return "", &Error{Label: op.Label, Err: err}
	}
	var out bytes.Buffer
	tail := &tail{line: op.Line}
	cmd := exec.Command(op.Argv[0], op.Argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=/usr/bin:/bin", "LC_ALL=C"}, op.Env...)
	cmd.Stdout, cmd.Stderr = &out, tail
	if op.Out != nil {
		cmd.Stdout = op.Out
	}
	if op.Stdin != "" {
		cmd.Stdin = strings.NewReader(op.Stdin)
	}
	cmd.SysProcAttr = r.Attr()
	cmd.WaitDelay = stopGrace
	if err := cmd.Start(); err != nil {
		return "", &Error{Label: op.Label, Err: err}
	}
	ended := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-ended:
			return
		case <-ctx.Done():
		}
		syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(stopGrace):
		}
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}()
	err := cmd.Wait()
	close(ended)
	<-stopped
	tail.flush()
	if ctx.Err() != nil && err != nil {
		err = fmt.Errorf("%w (%w)", ctx.Err(), err)
	}
	if err != nil {
		return out.String(), &Error{Label: op.Label, Output: tail.String(), Err: err}
	}
	return out.String(), nil
}

// tail splits what is written into lines, at line feeds and carriage returns,
// hands them on and keeps the last few.
type tail struct {
	line    func(string)
	partial []byte
	last    []string
}

const keptLines = 6

func (t *tail) Write(p []byte) (int, error) {
	for _, c := range p {
		if c == '\n' || c == '\r' {
			t.flush()
			continue
		}
		t.partial = append(t.partial, c)
	}
	return len(p), nil
}

func (t *tail) flush() {
	text := strings.TrimSpace(string(t.partial))
	t.partial = t.partial[:0]
	if text == "" {
		return
	}
	if t.last = append(t.last, text); len(t.last) > keptLines {
		t.last = t.last[1:]
	}
	if t.line != nil {
		t.line(text)
	}
}

func (t *tail) String() string { return strings.Join(t.last, "; ") }
