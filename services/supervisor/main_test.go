package supervisor_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/services"
	"github.com/understudy-ha/understudy/services/proctree"
	"github.com/understudy-ha/understudy/services/supervisor"
	"github.com/understudy-ha/understudy/statefile"
)

// The supervisor reaps whatever dies in its process, so that it runs in one of
// its own: this binary again, told by its environment what to be.
const (
	roleVariable = "UNDERSTUDY_TEST_ROLE"
	dirVariable  = "UNDERSTUDY_TEST_DIR"
)

func TestMain(m *testing.M) {
	dir := os.Getenv(dirVariable)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var err error
	switch os.Getenv(roleVariable) {
	case "":
		os.Exit(m.Run())
	case "guard":
		_ = os.Setenv(roleVariable, "init")
		err = supervisor.Guard(supervisor.GuardOptions{
			Argv: []string{os.Args[0]}, Record: filepath.Join(dir, "run/init.json"), Logger: log,
			Cgroup: os.Getenv("UNDERSTUDY_TEST_CGROUP"),
		})
	case "init":
		ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer cancel()
		err = supervisor.Run(ctx, options(dir, log))
	case "ready":
		conn, dialErr := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
		if dialErr != nil {
			log.Error("notify", "error", dialErr)
			os.Exit(1)
		}
		_, err = conn.Write([]byte("STATUS=well\nREADY=1\n"))
		select {}
	}
	if err != nil {
		log.Error("role", "error", err)
		os.Exit(1)
	}
}

func options(dir string, log *slog.Logger) supervisor.Options {
	return supervisor.Options{
		Units: filepath.Join(dir, "units"), Logs: filepath.Join(dir, "log"),
		Socket: filepath.Join(dir, "run/init.sock"), Notify: filepath.Join(dir, "run/notify"), Logger: log,
	}
}

// node is a node with its guard and init.
type node struct {
	*services.Exec
	t     *testing.T
	dir   string
	guard *exec.Cmd
}

func newNode(t *testing.T, units map[string]string) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "understudy-supervisor-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n := &node{t: t, dir: dir, Exec: services.NewExec(filepath.Join(dir, "run/init.sock"))}
	for name, text := range units {
		n.write("units/"+name, text)
	}
	n.boot()
	t.Cleanup(n.end)
	return n
}

func (n *node) write(name, text string) {
	n.t.Helper()
	file := filepath.Join(n.dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "DIR", n.dir)), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// boot starts the guard and waits for the init to answer.
func (n *node) boot() {
	n.t.Helper()
	n.launch()
	n.eventually("the init answers, and its record is there", func() bool {
		_, err := n.States(n.t.Context())
		r, unread := statefile.Read[supervisor.Record](n.recordFile())
		return err == nil && unread == nil && r.Guard.PID == n.guard.Process.Pid
	})
}

// launch starts the guard.
func (n *node) launch() {
	n.t.Helper()
	n.guard = exec.Command(os.Args[0])
	n.guard.Env = append(os.Environ(), roleVariable+"=guard", dirVariable+"="+n.dir)
	n.guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	log, err := os.OpenFile(filepath.Join(n.dir, "init.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	n.guard.Stdout, n.guard.Stderr = log, log
	if err := n.guard.Start(); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) recordFile() string { return filepath.Join(n.dir, "run/init.json") }

func (n *node) record() supervisor.Record {
	n.t.Helper()
	r, err := statefile.Read[supervisor.Record](n.recordFile())
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

// end kills the init, and makes sure that the guard has left nothing behind.
func (n *node) end() {
	if n.guard.ProcessState != nil {
		return
	}
	below := n.below()
	_ = syscall.Kill(n.record().Init.PID, syscall.SIGKILL)
	n.wait()
	for _, p := range below {
		if p.Alive() {
			n.t.Errorf("process %d has outlived its node", p.PID)
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
	}
	if n.t.Failed() {
		text, _ := os.ReadFile(filepath.Join(n.dir, "init.log"))
		n.t.Logf("init.log:\n%s", text)
	}
}

// wait waits for the guard to end.
func (n *node) wait() {
	n.t.Helper()
	done := make(chan struct{})
	go func() { _ = n.guard.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		n.t.Error("the guard does not end")
		_ = n.guard.Process.Kill()
		<-done
	}
}

// below returns every process of the node but the guard.
func (n *node) below() []proctree.Process {
	n.t.Helper()
	table, err := proctree.Snapshot()
	if err != nil {
		n.t.Fatal(err)
	}
	var all []proctree.Process
	for _, pid := range table.Descendants(n.guard.Process.Pid) {
		all = append(all, table[pid])
	}
	return all
}

func (n *node) state(unit string) services.State {
	n.t.Helper()
	s, err := n.State(n.t.Context(), unit)
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

func (n *node) start(unit string) services.State {
	n.t.Helper()
	if err := n.Start(n.t.Context(), unit); err != nil {
		n.t.Fatal(err)
	}
	return n.state(unit)
}

func (n *node) eventually(what string, holds func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(filepath.Join(n.dir, "init.log"))
			n.t.Fatalf("waited in vain until %s\n%s", what, text)
		}
	}
}

// logged waits until the init has logged a text.
func (n *node) logged(text string) {
	n.t.Helper()
	n.eventually("the init logs "+text, func() bool {
		log, _ := os.ReadFile(filepath.Join(n.dir, "init.log"))
		return strings.Contains(string(log), text)
	})
}

// file waits for a file of the node and returns its text.
func (n *node) file(name string) string {
	n.t.Helper()
	var text []byte
	n.eventually(name+" is written", func() bool {
		text, _ = os.ReadFile(filepath.Join(n.dir, name))
		return strings.HasSuffix(string(text), "\n")
	})
	return strings.TrimSpace(string(text))
}
