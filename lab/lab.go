package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ErrNeedsRoot: only root can make a lab.
var ErrNeedsRoot = errors.New("a lab of whole machines needs root, for instance with sudo")

// bridge is the lab's switch. It is in the lab's own network namespace, so that
// its name and its addresses meet nobody else's.
const bridge = "ul-br"

// Lab is a set of namespaces with machines in it.
type Lab struct {
	image  string
	dir    string // the machines' disks
	prefix netip.Prefix
	free   []func() // what else is given back at the end

	keeper   *exec.Cmd
	stdin    io.Closer // the keeper, and with it all processes of the lab, ends with it
	init     int       // process that the namespaces are those of
	machines []*Machine
}

// Raise makes a lab without machines. The bridge has the address of gateway, and its
// network is that of all machines. The error wraps ErrNeedsRoot for an ordinary user.
// Close must be called.
func Raise(ctx context.Context, gateway netip.Prefix, log *slog.Logger) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("raise lab: %w", ErrNeedsRoot)
	}
	image, free, err := Image(ctx, log)
	if err != nil {
		return nil, fmt.Errorf("raise lab: %w", err)
	}
	l := &Lab{image: image, prefix: gateway, free: []func(){free}}
	if err := l.makeDir(ctx); err != nil {
		return nil, fmt.Errorf("raise lab: %w", errors.Join(err, l.Close()))
	}
	if err := l.keep(ctx); err != nil {
		return nil, fmt.Errorf("raise lab: %w", errors.Join(err, l.Close()))
	}
	for _, argv := range [][]string{
		{"mount", "-t", "tmpfs", "tmpfs", "/run"},
		{"ip", "link", "set", "lo", "up"},
		{"ip", "link", "add", bridge, "type", "bridge"},
		{"ip", "address", "add", gateway.String(), "dev", bridge},
		{"ip", "link", "set", bridge, "up"},
	} {
		if _, err := run(ctx, strings.Join(argv, " "), l.inside(argv...)...); err != nil {
			return nil, fmt.Errorf("raise lab: %w", errors.Join(err, l.Close()))
		}
	}
	return l, nil
}

// Dir is a folder that is deleted with the lab, or, if this process is killed, when the
// next one is raised.
func (l *Lab) Dir() string { return l.dir }

// makeDir makes the folder of the disks, and deletes those of labs whose process
// was killed.
func (l *Lab) makeDir(ctx context.Context) error {
	done, err := locked(ctx, filepath.Join(Cache, "lock"))
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, closeWithin)
	defer cancel()
	if err := sweep(ctx, "lab-*", 0); err != nil {
		return err
	}
	if l.dir, err = os.MkdirTemp(Cache, "lab-"); err != nil {
		return err
	}
	free, err := inUse(l.dir)
	if err != nil {
		return err
	}
	l.free = append(l.free, free)
	return nil
}

// keep starts the process that the namespaces live by. It reads from a pipe whose
// other end this process holds; when that is closed, by whatever cause, it ends, and
// as it is the first of its process namespace, the kernel kills all others there.
func (l *Lab) keep(ctx context.Context) error {
	l.keeper = exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "cat")
	stdin, err := l.keeper.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := l.keeper.StdoutPipe()
	if err != nil {
		return err
	}
	l.keeper.Stderr = os.Stderr
	if err := l.keeper.Start(); err != nil {
		return err
	}
	l.stdin = stdin
	// What comes back has been through the namespaces.
	if _, err := io.WriteString(stdin, "there\n"); err != nil {
		return err
	}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	return until(ctx, "the namespaces are there", func() error {
		l.init, err = onlyChild(l.keeper.Process.Pid)
		return err
	})
}

// inside is a command line that runs argv in the lab's namespaces.
func (l *Lab) inside(argv ...string) []string {
	return append([]string{"nsenter", "--target", strconv.Itoa(l.init), "--mount", "--net", "--pid", "--"}, argv...)
}

// onlyChild returns the process that a process has started.
func onlyChild(pid int) (int, error) {
	p := strconv.Itoa(pid)
	text, err := os.ReadFile(filepath.Join("/proc", p, "task", p, "children"))
	if err != nil {
		return 0, err
	}
	children := strings.Fields(string(text))
	if len(children) != 1 {
		return 0, fmt.Errorf("process %d has %d children", pid, len(children))
	}
	return strconv.Atoi(children[0])
}

// closeWithin bounds the end of a lab.
const closeWithin = 30 * time.Second

// Close cuts the power of all machines, and deletes them and the namespaces. It
// returns when no process and no control group of the lab is left.
func (l *Lab) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeWithin)
	defer cancel()
	var problems []error
	if l.stdin != nil {
		problems = append(problems, l.stdin.Close())
		// Its exit code does not matter: that it has ended does.
		_ = l.keeper.Wait()
	}
	for _, m := range l.machines {
		problems = append(problems, m.ended(ctx), dropGroups(ctx, m.groups))
	}
	if l.dir != "" {
		problems = append(problems, os.RemoveAll(l.dir))
	}
	for _, free := range l.free {
		free()
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("close lab: %w", err)
	}
	return nil
}
