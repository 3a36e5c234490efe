package services

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// logind is a logind by hand on a bus of its own: it gives out delay locks, and
// sends its signal.
type logind struct {
	t     *testing.T
	conn  *godbus.Conn
	locks chan [2]*os.File // both ends of each: the reading one sees when the other is given back
}

// Inhibit is the method of org.freedesktop.login1.Manager.
func (l *logind) Inhibit(what, who, why, mode string) (godbus.UnixFD, *godbus.Error) {
	if what != "shutdown" || mode != "delay" || who == "" || why == "" {
		return 0, godbus.MakeFailedError(fmt.Errorf("%q by %q because %q in mode %q", what, who, why, mode))
	}
	read, write, err := os.Pipe()
	if err != nil {
		return 0, godbus.MakeFailedError(err)
	}
	fd := godbus.UnixFD(write.Fd())
	l.locks <- [2]*os.File{read, write}
	return fd, nil
}

func (l *logind) tell(down bool) {
	l.t.Helper()
	if err := l.conn.Emit("/org/freedesktop/login1", "org.freedesktop.login1.Manager.PrepareForShutdown", down); err != nil {
		l.t.Fatal(err)
	}
}

// held says whether a lock is still held.
func held(t *testing.T, lock *os.File) bool {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(lock.Fd()), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, 0); err != nil {
		t.Fatal(err)
	}
	return fds[0].Revents&unix.POLLHUP == 0
}

// startLogind makes a bus with a logind the system's bus of this process.
func startLogind(t *testing.T) (l *logind, stop func()) {
	t.Helper()
	dir := t.TempDir()
	address := "unix:path=" + filepath.Join(dir, "bus")
	conf := filepath.Join(dir, "bus.conf")
	text := `<busconfig><type>session</type><listen>` + address + `</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	bus := exec.Command("dbus-daemon", "--config-file="+conf, "--nofork", "--nopidfile")
	bus.Stderr = t.Output()
	if err := bus.Start(); err != nil {
		t.Fatal(err)
	}
	stop = func() {
		_ = bus.Process.Kill()
		_ = bus.Wait()
	}
	t.Cleanup(stop)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	l = &logind{t: t, locks: make(chan [2]*os.File, 4)}
	var err error
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if l.conn, err = godbus.Connect(address); err == nil || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.conn.Close() })
	if err := l.conn.Export(l, "/org/freedesktop/login1", "org.freedesktop.login1.Manager"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.conn.RequestName("org.freedesktop.login1", godbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	return l, stop
}

// A shutdown is called off, and another is not: each is told, and held up until it
// was dealt with. The lock of the one that was called off is taken anew.
func TestShutdownByLogind(t *testing.T) {
	l, stop := startLogind(t)
	told := make(chan bool)
	goOn := make(chan struct{})
	ended := make(chan error)
	go func() {
		ended <- NewSystemd().OnShutdown(t.Context(), func(_ context.Context, down bool) {
			told <- down
			<-goOn
		})
	}()
	for round := range 2 {
		ends := <-l.locks
		l.tell(true)
		if down := <-told; !down {
			t.Errorf("round %d: told that the host stays", round)
		}
		lock := ends[0]
		if err := ends[1].Close(); err != nil { // the client has its own by now
			t.Fatal(err)
		}
		if !held(t, lock) {
			t.Errorf("round %d: the shutdown is not held up", round)
		}
		goOn <- struct{}{}
		if _, err := lock.Read(make([]byte, 1)); err == nil { // end of file
			t.Errorf("round %d: something was written to the lock", round)
		}
		if round == 0 {
			l.tell(false)
			if down := <-told; down {
				t.Error("a shutdown that is called off was told as one")
			}
			goOn <- struct{}{}
		}
	}
	stop() // the bus goes
	if err := <-ended; !errors.Is(err, ErrUnreachable) {
		t.Errorf("without a bus: %v", err)
	}
}

// Without logind a shutdown may be missed, and that is said.
func TestNoLogind(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(t.TempDir(), "none"))
	err := NewSystemd().OnShutdown(t.Context(), func(context.Context, bool) { t.Error("told of a shutdown") })
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("%v", err)
	}
}
