package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/understudy-ha/understudy/services/unitfile"
)

// processes starts and reaps all children of this process. There must be only
// one of it, and nothing else here may start or wait for a process: it reaps
// whatever dies, the orphans of its children included.
type processes struct {
	start   chan func()
	started chan struct{}

	mu      sync.Mutex
	waiting map[int]chan syscall.WaitStatus
}

func newProcesses() *processes {
	p := &processes{
		start:   make(chan func()),
		started: make(chan struct{}, 1),
		waiting: make(map[int]chan syscall.WaitStatus),
	}
	go p.starter()
	go p.reaper()
	return p
}

// starter runs every fork on one thread that lives as long as this process: a
// child's parent-death signal is sent when the thread that made it ends.
func (p *processes) starter() {
	runtime.LockOSThread()
	for f := range p.start {
		f()
	}
}

func (p *processes) reaper() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.ECHILD):
			<-p.started
		case err != nil:
			// EINTR: again.
		default:
			p.mu.Lock()
			died, ours := p.waiting[pid]
			delete(p.waiting, pid)
			p.mu.Unlock()
			if ours {
				died <- status
			}
		}
	}
}

// main says whether pid was started here and has not been reaped.
func (p *processes) main(pid int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.waiting[pid]
	return ok
}

// child is a process that was started here.
type child struct {
	pid  int
	died chan syscall.WaitStatus // gets one value
}

// launch is everything that a child needs.
type launch struct {
	argv   []string
	dir    string
	env    []string
	cred   *syscall.Credential
	nofile uint64
	output *os.File
}

// run starts a child in its own session. It dies when this process dies.
func (p *processes) run(l launch) (child, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return child{}, fmt.Errorf("start %s: %w", l.argv[0], err)
	}
	defer null.Close()
	attr := &syscall.ProcAttr{
		Dir: l.dir, Env: l.env,
		Files: []uintptr{null.Fd(), l.output.Fd(), l.output.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL, Credential: l.cred},
	}
	c := child{died: make(chan syscall.WaitStatus, 1)}
	done := make(chan struct{})
	p.start <- func() {
		defer close(done)
		// Under the lock, so that the reaper cannot look for a child
		// that is not entered yet.
		p.mu.Lock()
		defer p.mu.Unlock()
		if c.pid, err = syscall.ForkExec(l.argv[0], l.argv, attr); err == nil {
			p.waiting[c.pid] = c.died
		}
	}
	<-done
	if err != nil {
		return child{}, fmt.Errorf("start %s: %w", l.argv[0], err)
	}
	select {
	case p.started <- struct{}{}:
	default:
	}
	if l.nofile > 0 {
		limitFiles(c.pid, l.nofile)
	}
	return c, nil
}

// limitFiles sets the number of open files of a process, as far as this one is
// allowed to: an ordinary user cannot go above its hard limit.
func limitFiles(pid int, n uint64) {
	limit := unix.Rlimit{Cur: n, Max: n}
	if unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil) == nil {
		return
	}
	var own unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &own) == nil {
		limit = unix.Rlimit{Cur: min(n, own.Max), Max: own.Max}
		_ = unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil)
	}
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// identity returns the credential and the environment that User= and Group= ask
// for. A supervisor that is not root runs everything as itself.
func identity(u unitfile.Unit) (*syscall.Credential, []string, error) {
	env := []string{defaultPath, "LANG=C.UTF-8"}
	if os.Geteuid() != 0 {
		return nil, slices.Concat(env, inherited("HOME", "USER", "LOGNAME"), u.Environment), nil
	}
	if u.User == "" {
		return nil, slices.Concat(env, u.Environment), nil
	}
	who, err := user.Lookup(u.User)
	if err != nil {
		return nil, nil, fmt.Errorf("user of unit %s: %w", u.Name, err)
	}
	group := who.Gid
	if u.Group != "" {
		g, err := user.LookupGroup(u.Group)
		if err != nil {
			return nil, nil, fmt.Errorf("group of unit %s: %w", u.Name, err)
		}
		group = g.Gid
	}
	ids, err := who.GroupIds()
	if err != nil {
		return nil, nil, fmt.Errorf("groups of user %s: %w", u.User, err)
	}
	numbers := make([]uint32, 0, len(ids)+2)
	for _, id := range append([]string{who.Uid, group}, ids...) {
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return nil, nil, fmt.Errorf("id %s of user %s: %w", id, u.User, err)
		}
		numbers = append(numbers, uint32(n))
	}
	env = append(env, "HOME="+who.HomeDir, "USER="+u.User, "LOGNAME="+u.User)
	cred := &syscall.Credential{Uid: numbers[0], Gid: numbers[1], Groups: numbers[2:]}
	return cred, slices.Concat(env, u.Environment), nil
}

func inherited(names ...string) []string {
	var env []string
	for _, name := range names {
		if v, ok := os.LookupEnv(name); ok && !strings.ContainsRune(v, 0) {
			env = append(env, name+"="+v)
		}
	}
	return env
}
