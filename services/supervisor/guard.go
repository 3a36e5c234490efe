package supervisor

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/understudy-ha/understudy/services/proctree"
	"github.com/understudy-ha/understudy/statefile"
)

// GuardOptions say what a guard starts.
type GuardOptions struct {
	Argv   []string // the init, which calls Run
	Record string   // where the Record is kept; a lock is kept beside it
	Cgroup string   // folder of the node's control group (version 2), made here and left; empty: none
	Logger *slog.Logger
}

// Record tells the processes of a node that is up.
type Record struct {
	Guard proctree.Process `json:"guard"`
	Init  proctree.Process `json:"init"`
}

// ErrRunning is the error of a node that is up already.
var ErrRunning = errors.New("the node is up already")

// Guard starts an init and returns when nothing of the node is left: when the
// init has ended, however that came about, it kills all that was below it. That
// needs no help of the dead init, because orphans become children of the guard.
// SIGTERM is handed on to the init. The error wraps ErrRunning when another
// guard holds the record.
func Guard(opts GuardOptions) error {
	lock, err := holdLock(opts.Record + ".lock")
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of orphans: %w", err)
	}
	// The init dies with the thread that has started it.
	runtime.LockOSThread()
	init := exec.Command(opts.Argv[0], opts.Argv[1:]...)
	init.Stdout, init.Stderr, init.Dir = os.Stdout, os.Stderr, "/"
	init.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if opts.Cgroup != "" {
		group, err := enterCgroup(opts.Cgroup)
		if err != nil {
			return err
		}
		defer group.Close()
		init.SysProcAttr.UseCgroupFD, init.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	terms := make(chan os.Signal, 1)
	signal.Notify(terms, syscall.SIGTERM)
	// Not signal.Ignore: that would be handed down to everything on the node.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT)
	if err := init.Start(); err != nil {
		return fmt.Errorf("start init: %w", err)
	}
	go func() {
		for range terms {
			_ = init.Process.Signal(syscall.SIGTERM)
		}
	}()
	record := Record{Init: identify(init.Process.Pid), Guard: identify(os.Getpid())}
	recordErr := statefile.WriteMode(opts.Record, record, 0o644)
	if recordErr != nil {
		_ = init.Process.Kill()
	}
	err = init.Wait()
	opts.Logger.Warn("init has ended; ending what is left of the node", "status", init.ProcessState.String())
	if err := reapAll(); err != nil {
		return err
	}
	if recordErr != nil {
		return fmt.Errorf("record init: %w", recordErr)
	}
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	return nil
}

func holdLock(file string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, fmt.Errorf("lock node: %w", err)
	}
	lock, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock node: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("lock node: %w", ErrRunning)
	}
	return lock, nil
}

// enterCgroup makes the node's control group, for the init, and puts the guard
// into the one above it, so that it is out of the node's but still known.
func enterCgroup(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make control group: %w", err)
	}
	procs := filepath.Join(filepath.Dir(dir), "cgroup.procs")
	if err := os.WriteFile(procs, []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return nil, fmt.Errorf("enter control group: %w", err)
	}
	group, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open control group: %w", err)
	}
	return group, nil
}

func identify(pid int) proctree.Process {
	p, _ := proctree.Read(pid)
	return p
}

// reapAll kills and reaps every process below this one.
func reapAll() error {
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		if err := proctree.SignalBelow(os.Getpid(), syscall.SIGKILL); err != nil {
			return fmt.Errorf("end what is left of the node: %w", err)
		}
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if errors.Is(err, syscall.ECHILD) {
				return nil
			}
			if pid <= 0 && !errors.Is(err, syscall.EINTR) {
				break
			}
		}
		time.Sleep(pause)
	}
}
