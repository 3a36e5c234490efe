package lab

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var gateway = netip.MustParsePrefix("10.77.9.254/24")

// raise makes a lab for a test, or nil for a user who cannot: then it has tested
// that the reason is given.
func raise(t *testing.T) *Lab {
	t.Helper()
	l, err := Raise(t.Context(), gateway, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if os.Geteuid() != 0 {
		if !errors.Is(err, ErrNeedsRoot) {
			t.Errorf("raise as an ordinary user: %v, want %v", err, ErrNeedsRoot)
		}
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func boot(t *testing.T, m *Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := m.Boot(ctx); err != nil {
		t.Fatal(err)
	}
}

func do(t *testing.T, m *Machine, user string, argv ...string) string {
	t.Helper()
	out, err := m.Run(t.Context(), user, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Two machines on one bridge: each has its own systemd and its own address, and a
// disk that outlives an orderly end and a power cut.
func TestMachines(t *testing.T) {
	l := raise(t)
	if l == nil {
		return
	}
	lent := t.TempDir()
	if err := os.WriteFile(filepath.Join(lent, "word"), []byte("lent"), 0o644); err != nil {
		t.Fatal(err)
	}
	a, err := l.Machine(t.Context(), "a", netip.MustParseAddr("10.77.9.1"), Mount{Host: lent, Inside: "/srv/lent"}, Mount{Host: lent, Inside: "/srv/over", Over: true})
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Machine(t.Context(), "b", netip.MustParseAddr("10.77.9.2"))
	if err != nil {
		t.Fatal(err)
	}
	boot(t, a)
	boot(t, b)
	if name := do(t, a, Admin, "hostname"); name != "a\n" {
		t.Errorf("the host name of a is %q", name)
	}
	do(t, a, Admin, "sudo", "systemctl", "--quiet", "is-active", "dbus.service", "systemd-journald.service")
	// The bridge carries packets from one to the other.
	do(t, b, Admin, "sudo", "systemd-run", "--quiet", "--unit=greet", "systemd-socket-activate", "--listen=10.77.9.2:99", "--inetd", "--accept", "/usr/bin/echo", "hello")
	if err := a.Wait(t.Context(), "b greets", "bash", "-c", "read -r word </dev/tcp/10.77.9.2/99 && test $word = hello"); err != nil {
		t.Error(err)
	}
	cutOff(t, l, b)
	if out, err := a.Run(t.Context(), "root", "touch", "/srv/lent/mine"); err == nil {
		t.Errorf("a machine has written to what was lent: %s", out)
	}
	do(t, a, Admin, "bash", "-c", "test $(cat /srv/over/word) = lent && echo changed >/srv/over/word2")
	if _, err := os.Stat(filepath.Join(lent, "word2")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a machine has written through a layer: %v", err)
	}
	do(t, a, Admin, "sudo", "touch", "/etc/kept")
	if err := a.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Run(t.Context(), "root", "true"); !errors.Is(err, ErrOff) {
		t.Errorf("a command on a machine that is off: %v", err)
	}
	boot(t, a)
	do(t, a, Admin, "sudo", "mv", "/etc/kept", "/etc/kept2")
	if err := a.PowerCut(t.Context()); err != nil {
		t.Fatal(err)
	}
	boot(t, a)
	do(t, a, Admin, "test", "-e", "/etc/kept2", "-a", "!", "-e", "/etc/kept")
	do(t, b, "root", "systemctl", "--quiet", "is-active", "greet.service")
}

// cutOff: a client on the bridge reaches what listens on b, unless b's network drops it.
func cutOff(t *testing.T, l *Lab, b *Machine) {
	t.Helper()
	greeted := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		conn, err := l.Dial(ctx, "tcp", "10.77.9.2:99")
		if err != nil {
			return err
		}
		defer conn.Close()
		word, err := io.ReadAll(conn)
		if string(word) != "hello\n" {
			t.Errorf("b greets with %q, %v", word, err)
		}
		return nil
	}
	if err := greeted(); err != nil {
		t.Error(err)
	}
	rules := filepath.Join(t.TempDir(), "rules.nft")
	if err := os.WriteFile(rules, []byte("table inet cut { chain input { type filter hook input priority 0; iifname host0 drop; }; }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := b.Network(t.Context(), "nft", "--file", rules); err != nil {
		t.Error(err)
	}
	var late net.Error
	if err := greeted(); !errors.As(err, &late) || !late.Timeout() {
		t.Errorf("a client of a host that hears nobody: %v", err)
	}
	if err := b.Network(t.Context(), "nft", "delete", "table", "inet", "cut"); err != nil {
		t.Error(err)
	}
	if err := greeted(); err != nil {
		t.Error(err)
	}
}

// When the process that raised a lab is killed, nothing of it goes on.
func TestKilledOwner(t *testing.T) {
	if os.Getenv("UNDERSTUDY_LAB_OWNER") != "" {
		own(t)
		return
	}
	owner := exec.Command(os.Args[0], "-test.run=^TestKilledOwner$", "-test.v")
	owner.Env = append(os.Environ(), "UNDERSTUDY_LAB_OWNER=1")
	if os.Geteuid() != 0 {
		if out, err := owner.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	stdout, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	buffer := make([]byte, 4096)
	for !strings.Contains(said.String(), "end of line") {
		n, err := stdout.Read(buffer)
		said.Write(buffer[:n])
		if err != nil {
			t.Fatalf("%v: %s", err, said.String())
		}
	}
	_ = owner.Process.Kill()
	_ = owner.Wait()
	_, list, _ := strings.Cut(said.String(), "left ")
	list, _, _ = strings.Cut(list, " end of line")
	left := strings.Fields(list)
	if len(left) < 2 {
		t.Fatalf("the owner has said %q", said.String())
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, group := range left[1:] {
		if err := until(ctx, "no process is left", func() error { return noProcess(group) }); err != nil {
			t.Error(err)
		}
	}
	raise(t) // the next one tidies up
	for _, dir := range left {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
}

// noProcess returns nil if no process is in a control group or below.
func noProcess(group string) error {
	return filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		if text, err := os.ReadFile(path); err != nil || len(text) > 0 {
			return errors.Join(err, errors.New(path+" has "+string(text)))
		}
		return nil
	})
}

// own raises a lab and waits to be killed.
func own(t *testing.T) {
	l := raise(t)
	if l == nil {
		return
	}
	m, err := l.Machine(t.Context(), "k", netip.MustParseAddr("10.77.9.3"))
	if err != nil {
		t.Fatal(err)
	}
	boot(t, m)
	t.Logf("left %s %s end of line", l.dir, strings.Join(m.groups, " "))
	<-t.Context().Done()
}

func TestGroupPath(t *testing.T) {
	const mixed = "9:name=systemd:/a\n8:pids:/\n0::/b:c\n"
	for _, c := range []struct {
		text, controllers, path string
		ok                      bool
	}{
		{mixed, "name=systemd", "/a", true},
		{mixed, "", "/b:c", true},
		{"0::/user.slice\n", "", "/user.slice", true},
		{"0::/user.slice\n", "name=systemd", "", false},
	} {
		if path, ok := groupPath(c.text, c.controllers); path != c.path || ok != c.ok {
			t.Errorf("group %q of %q: %q %v, want %q %v", c.controllers, c.text, path, ok, c.path, c.ok)
		}
	}
}
