// Package haproxytest runs real HAProxy processes for tests.
package haproxytest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Binary is HAProxy. Debian installs it where not every user's PATH leads.
func Binary(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"haproxy", "/usr/sbin/haproxy"} {
		if file, err := exec.LookPath(name); err == nil {
			return file
		}
	}
	t.Fatal("these tests run a real HAProxy: 'packaging/setup test' installs it")
	return ""
}

// Check has HAProxy check a configuration; a warning fails the test as an error does.
// It returns the file that holds the configuration.
func Check(t testing.TB, config string) (file string) {
	t.Helper()
	if os.Geteuid() != 0 {
		// Only root can become another user.
		config = strings.NewReplacer("    user haproxy\n", "", "    group haproxy\n", "").Replace(config)
	}
	file = filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(Binary(t), "-dW", "-c", "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("haproxy -c: %v\n%s\n%s", err, out, config)
	}
	return file
}

// Start runs HAProxy on a configuration until the test ends.
func Start(t testing.TB, config string) {
	t.Helper()
	command := exec.Command(Binary(t), "-db", "-f", Check(t, config))
	command.Stdout, command.Stderr = t.Output(), t.Output()
	// Should the test binary itself be killed, no clean-up runs.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
}
