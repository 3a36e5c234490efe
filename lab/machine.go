package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ErrOff: the machine does not run.
var ErrOff = errors.New("the machine is off")

// Mount lends a folder or a file of this host to a machine.
type Mount struct {
	Host, Inside string // absolute paths
	// Over lets the machine write: what it writes lies over the host's folder,
	// for this machine alone, and is gone with it. Any user may write there.
	Over bool
}

// Machine is one Debian host. Its disk outlives boots and power cuts. Its methods
// are not for concurrent use, except Run.
type Machine struct {
	Name    string
	Address netip.Addr

	lab    *Lab
	dir    string // disk: its layer over the image
	mounts []Mount
	groups []string // control groups

	nspawn *exec.Cmd
	exited chan struct{} // closed when nspawn has ended
	leader int           // the machine's own first process; 0: off
}

// Machine adds a machine that is off. Its name is its host name, of at most 8
// letters and digits.
func (l *Lab) Machine(ctx context.Context, name string, address netip.Addr, mounts ...Mount) (*Machine, error) {
	m := &Machine{Name: name, Address: address, lab: l, dir: filepath.Join(l.dir, name), mounts: mounts}
	var err error
	if m.groups, err = makeGroups(filepath.Base(l.dir) + "-" + name); err != nil {
		return nil, fmt.Errorf("add machine %s: %w", name, err)
	}
	l.machines = append(l.machines, m)
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(m.dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("add machine %s: %w", name, err)
		}
	}
	network := fmt.Sprintf("[Match]\nName=host0\n\n[Network]\nAddress=%s\nGateway=%s\nLinkLocalAddressing=no\n",
		netip.PrefixFrom(address, l.prefix.Bits()), l.prefix.Addr())
	for file, text := range map[string]string{
		"etc/systemd/network/10-host0.network": network,
		"etc/hostname":                         name + "\n",
		"etc/hosts":                            "127.0.0.1 localhost\n127.0.1.1 " + name + "\n",
	} {
		file = filepath.Join(m.dir, "upper", file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return nil, fmt.Errorf("add machine %s: %w", name, err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("add machine %s: %w", name, err)
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", l.image, filepath.Join(m.dir, "upper"), filepath.Join(m.dir, "work"))
	mount := l.inside("mount", "-t", "overlay", "overlay", "-o", options, m.root())
	if _, err := run(ctx, "mount the disk", mount...); err != nil {
		return nil, fmt.Errorf("add machine %s: %w", name, err)
	}
	return m, nil
}

func (m *Machine) root() string { return filepath.Join(m.dir, "root") }

// inGroups moves the shell into the control groups before "--" and becomes what
// comes after. A process cannot be started in a group of version 1.
const inGroups = `while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit 1; shift; done; shift; exec "$@"`

// Boot switches the machine on and returns when its systemd has started all units,
// or ctx ends. A unit that has failed is no error.
func (m *Machine) Boot(ctx context.Context) error {
	if m.leader != 0 {
		return nil
	}
	nspawn, err := m.commandLine()
	if err != nil {
		return fmt.Errorf("boot %s: %w", m.Name, err)
	}
	console, err := os.OpenFile(filepath.Join(m.dir, "console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("boot %s: %w", m.Name, err)
	}
	defer console.Close()
	argv := append(append([]string{"-c", inGroups, "sh"}, m.groups...), "--")
	m.nspawn = exec.Command("sh", append(argv, m.lab.inside(nspawn...)...)...)
	m.nspawn.Stdout, m.nspawn.Stderr = console, console
	if err := m.nspawn.Start(); err != nil {
		return fmt.Errorf("boot %s: %w", m.Name, err)
	}
	m.exited = make(chan struct{})
	go func(c *exec.Cmd, exited chan struct{}) {
		_ = c.Wait() // how a machine ends is asked where it is ended
		close(exited)
	}(m.nspawn, m.exited)
	if err := until(ctx, "systemd is up", func() error { return m.up(ctx) }); err != nil {
		said, _ := os.ReadFile(console.Name())
		return fmt.Errorf("boot %s: %w: the console says: %s", m.Name, err, said)
	}
	return nil
}

func (m *Machine) commandLine() ([]string, error) {
	argv := []string{"systemd-nspawn", "--quiet", "--boot", "--directory=" + m.root(), "--machine=ul-" + m.Name, "--hostname=" + m.Name,
		"--register=no", "--keep-unit", "--network-bridge=" + bridge, "--resolv-conf=off", "--timezone=off", "--console=pipe"}
	for i, mount := range m.mounts {
		if !mount.Over {
			argv = append(argv, "--bind-ro="+mount.Host+":"+mount.Inside)
			continue
		}
		upper := filepath.Join(m.dir, "over", strconv.Itoa(i))
		if err := openToAll(mount.Host, upper); err != nil {
			return nil, err
		}
		argv = append(argv, "--overlay="+mount.Host+":"+upper+":"+mount.Inside)
	}
	return argv, nil
}

// openToAll makes a layer over a folder in which every user may write, in the
// folder itself and in those just below.
func openToAll(lower, upper string) error {
	if err := os.MkdirAll(filepath.Dir(upper), 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(lower)
	if err != nil {
		return err
	}
	dirs := []string{upper}
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, filepath.Join(upper, e.Name()))
		}
	}
	for _, d := range dirs {
		if err := errors.Join(os.MkdirAll(d, 0o755), os.Chmod(d, 0o777)); err != nil {
			return err
		}
	}
	return nil
}

// up returns nil once systemd has finished booting, and finds its process.
func (m *Machine) up(ctx context.Context) error {
	nspawn, err := onlyChild(m.nspawn.Process.Pid)
	if err != nil {
		return err
	}
	leader, err := onlyChild(nspawn)
	if err != nil {
		return err
	}
	// Until systemd is there, this is nspawn itself on its way.
	name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(leader), "comm"))
	if err != nil || strings.TrimSpace(string(name)) != "systemd" {
		return fmt.Errorf("process %d is %q: %w", leader, name, errors.Join(err, ErrOff))
	}
	m.leader = leader
	state, err := m.Run(ctx, "root", "systemctl", "is-system-running")
	switch strings.TrimSpace(state) {
	case "running", "degraded":
		return nil
	}
	return fmt.Errorf("systemd is %q: %w", strings.TrimSpace(state), errors.Join(err, ErrOff))
}

// Path is how this host sees a file of a machine that is on.
func (m *Machine) Path(inside string) string {
	return filepath.Join("/proc", strconv.Itoa(m.leader), "root", inside)
}

// Run runs a command in the machine as a user, in his home, with what a login would
// set, to its end, and returns what it said, both outputs in one. All of it is
// killed when ctx ends. The error ends with that text, and wraps ErrOff.
func (m *Machine) Run(ctx context.Context, user string, argv ...string) (string, error) {
	if m.leader == 0 {
		return "", fmt.Errorf("run %s on %s: %w", argv[0], m.Name, ErrOff)
	}
	home := "/home/" + user
	path := "/usr/local/bin:/usr/bin:/bin"
	if user == "root" {
		home, path = "/root", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	in := []string{"nsenter", "--target", strconv.Itoa(m.leader), "--all", "--wd=/", "--",
		"env", "--ignore-environment", "--chdir=" + home, "HOME=" + home, "USER=" + user, "LOGNAME=" + user, "PATH=" + path, "LANG=C.UTF-8",
		"/usr/sbin/runuser", "--user=" + user, "--"}
	return run(ctx, "run on "+m.Name, append(in, argv...)...)
}

// Network runs a command of this host, such as nft, in the machine's network.
func (m *Machine) Network(ctx context.Context, argv ...string) error {
	if m.leader == 0 {
		return fmt.Errorf("run %s in the network of %s: %w", argv[0], m.Name, ErrOff)
	}
	_, err := run(ctx, argv[0]+" in the network of "+m.Name, append([]string{"nsenter", "--target", strconv.Itoa(m.leader), "--net", "--"}, argv...)...)
	return err
}

// Shell is a command line for root of this host that opens a shell in the machine.
func (m *Machine) Shell() []string {
	return []string{"nsenter", "--target", strconv.Itoa(m.leader), "--all", "--wd=/root", "--", "/bin/bash", "--login"}
}

// PowerOff shuts the machine down in order and waits for its end.
func (m *Machine) PowerOff(ctx context.Context) error {
	if m.leader == 0 {
		return nil
	}
	if out, err := m.Run(ctx, "root", "systemctl", "poweroff", "--no-block"); err != nil {
		return fmt.Errorf("power off %s: %w: %s", m.Name, err, out)
	}
	if err := m.ended(ctx); err != nil {
		return fmt.Errorf("power off: %w", err)
	}
	return nil
}

// PowerCut ends all processes of the machine in one instant and waits until they
// are gone. What they had written to files stays, also what was not yet synced: the
// kernel is this host's and lives on.
func (m *Machine) PowerCut(ctx context.Context) error {
	if m.leader == 0 {
		return nil
	}
	if process, err := os.FindProcess(m.leader); err == nil {
		_ = process.Kill() // an error says that it has ended
	}
	if err := m.ended(ctx); err != nil {
		return fmt.Errorf("cut the power: %w", err)
	}
	return nil
}

// ended waits for the end of the machine's processes.
func (m *Machine) ended(ctx context.Context) error {
	if m.exited == nil {
		return nil
	}
	select {
	case <-m.exited:
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of %s: %w", m.Name, ctx.Err())
	}
	m.leader, m.exited = 0, nil
	return nil
}

// Wait runs a command in the machine as root, again and again until it exits with
// 0 or ctx ends.
func (m *Machine) Wait(ctx context.Context, what string, argv ...string) error {
	return until(ctx, what+" on "+m.Name, func() error {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		_, err := m.Run(ctx, "root", argv...)
		return err
	})
}
