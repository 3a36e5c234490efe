package supervisor_test

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/services"
)

func TestNotify(t *testing.T) {
	n := newNode(t, map[string]string{
		"a.service": "[Service]\nType=notify\nEnvironment=" + roleVariable + "=ready\nExecStart=" + os.Args[0] + "\n",
		"b.service": "[Service]\nType=notify\nExecStart=/usr/bin/sleep 1000\nTimeoutStartSec=100ms\n",
		"c.service": "[Service]\nType=notify\nExecStart=/usr/bin/false\n",
	})
	if s := n.start("a"); s.Active != cluster.Yes {
		t.Errorf("after READY=1: %+v", s)
	}
	if err := n.Start(t.Context(), "b"); !errors.Is(err, services.ErrFailed) || !strings.Contains(err.Error(), "not ready after 100ms") {
		t.Errorf("a service that never gets ready: %v", err)
	}
	if s := n.state("b"); s.Result != services.ResultTimeout || s.Sub != services.SubFailed {
		t.Errorf("a service that never gets ready: %+v", s)
	}
	if err := n.Start(t.Context(), "c"); !errors.Is(err, services.ErrFailed) || !strings.Contains(err.Error(), "before it was ready") {
		t.Errorf("a service that ends before it is ready: %v", err)
	}
}

func TestOutputAndEnvironment(t *testing.T) {
	n := newNode(t, map[string]string{
		"a.service":          "[Service]\nExecStart=/usr/bin/env\nEnvironment=A=1 \"B=two words\"\n",
		"a.service.d/x.conf": "[Service]\nEnvironment=C=3\nExecStart=\nExecStart=/bin/sh -c \"env; pwd; sleep 0.2; ulimit -n; echo done >&2\"\nWorkingDirectory=/usr\nLimitNOFILE=777\n",
	})
	n.start("a")
	n.eventually("it has ended", func() bool { return n.state("a").Sub == services.SubDead })
	log := n.file("log/a.log")
	for _, want := range []string{"A=1\n", "B=two words\n", "C=3\n", "PATH=/usr/local/sbin", "\n/usr\n", "\n777\n", "done"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in the log:\n%s", want, log)
		}
	}
	if strings.Contains(log, roleVariable) {
		t.Errorf("the environment of the init leaks:\n%s", log)
	}
}

func TestUser(t *testing.T) {
	n := newNode(t, map[string]string{"a.service": "[Service]\nUser=nobody\nExecStart=/usr/bin/id -un\n"})
	n.start("a")
	n.eventually("it has ended", func() bool { return n.state("a").Sub == services.SubDead })
	want := "nobody"
	if os.Geteuid() != 0 {
		want = os.Getenv("USER")
	}
	if got := n.file("log/a.log"); got != want {
		t.Errorf("ran as %q, want %q", got, want)
	}
}

func TestReloadNamesWhatIsWrong(t *testing.T) {
	n := newNode(t, map[string]string{"a.service": sleeper})
	if err := n.Reload(t.Context()); err != nil {
		t.Errorf("good files: %v", err)
	}
	n.write("units/b.service", "[Service]\nExecStart=/usr/bin/true\nDynamicUser=yes\n")
	if err := n.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "unit b.service: [Service] DynamicUser=yes") {
		t.Errorf("a bad file: %v", err)
	}
	if err := n.Start(t.Context(), "b"); !errors.Is(err, services.ErrFailed) {
		t.Errorf("start of a bad file: %v", err)
	}
}

func TestConditionDoesNotHold(t *testing.T) {
	n := newNode(t, map[string]string{"a.service": "[Unit]\nConditionPathExists=DIR/there\n" + sleeper})
	if s := n.start("a"); s.Active != cluster.No || s.Sub != services.SubDead {
		t.Errorf("without the file: %+v", s)
	}
	n.write("there", "")
	if s := n.start("a"); s.Active != cluster.Yes {
		t.Errorf("with the file: %+v", s)
	}
}

func TestSecondGuardIsRefused(t *testing.T) {
	n := newNode(t, nil)
	second := &node{t: t, dir: n.dir, Exec: n.Exec}
	second.launch()
	second.wait()
	if second.guard.ProcessState.Success() {
		t.Error("a second guard of the same node came up")
	}
	if !n.record().Init.Alive() {
		t.Error("the first one was disturbed")
	}
}

// A shell that starts something in the background has it ignore SIGINT, and that
// is inherited; a service must get it all the same.
func TestSignalsAreNotIgnoredByInheritance(t *testing.T) {
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP)
	n := newNode(t, map[string]string{"a.service": "[Service]\nExecStart=/bin/sh -c \"grep SigIgn /proc/self/status; umask\"\n"})
	signal.Reset(syscall.SIGINT, syscall.SIGHUP)
	n.start("a")
	n.eventually("it has ended", func() bool { return n.state("a").Sub == services.SubDead })
	var ignored uint64
	var umask string
	got := n.file("log/a.log")
	if _, err := fmt.Sscanf(got, "SigIgn:\t%x\n%s", &ignored, &umask); err != nil {
		t.Fatalf("%q: %v", got, err)
	}
	// Signals 32 and up are the C library's own: the Go runtime leaves them as they are.
	if standard := ignored & (1<<31 - 1); standard != 0 || umask != "0022" {
		t.Errorf("ignored signals %x, umask %s", standard, umask)
	}
}
