package supervisor_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/services"
	"github.com/understudy-ha/understudy/services/proctree"
)

const sleeper = `[Service]
ExecStart=/usr/bin/sleep 1000
Restart=on-failure
RestartSec=50ms
[Install]
WantedBy=multi-user.target
`

// family is a service that, like PostgreSQL, has a child in a session of its own.
const family = `[Service]
ExecStart=/bin/sh -c "setsid sleep 1000 & echo $$! > DIR/child; wait"
KillMode=mixed
KillSignal=SIGINT
Restart=on-failure
RestartSec=50ms
`

func TestStartStop(t *testing.T) {
	n := newNode(t, map[string]string{"a.service": sleeper})
	before := n.state("a")
	if before.Active != cluster.No || before.Sub != services.SubDead || before.MainPID != 0 {
		t.Errorf("before the start: %+v", before)
	}
	running := n.start("a")
	if running.Active != cluster.Yes || running.Sub != services.SubRunning || running.MainPID == 0 {
		t.Errorf("after the start: %+v", running)
	}
	if again := n.start("a.service"); again.MainPID != running.MainPID {
		t.Errorf("a second start made another process: %+v, then %+v", running, again)
	}
	process, _ := proctree.Read(running.MainPID)
	if process.Session != running.MainPID {
		t.Errorf("the unit has no session of its own: %+v", process)
	}
	if err := n.Stop(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if process.Alive() {
		t.Error("stop returned while the process lived")
	}
	if s := n.state("a"); s.Active != cluster.No || s.Sub != services.SubDead || s.Result != services.ResultSuccess {
		t.Errorf("after the stop: %+v", s)
	}
	if err := n.Stop(t.Context(), "a"); err != nil {
		t.Errorf("a second stop: %v", err)
	}
}

func TestUnknownUnit(t *testing.T) {
	n := newNode(t, nil)
	for name, err := range map[string]error{
		"start":  n.Start(t.Context(), "none"),
		"stop":   n.Stop(t.Context(), "none"),
		"kill":   n.Kill(t.Context(), "none", syscall.SIGTERM),
		"enable": n.Enable(t.Context(), "none"),
		"path":   n.Start(t.Context(), "../units/none"),
	} {
		if !errors.Is(err, services.ErrUnknownUnit) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s, err := n.State(t.Context(), "none"); !errors.Is(err, services.ErrUnknownUnit) || s.Active != cluster.No {
		t.Errorf("state: %+v, %v", s, err)
	}
}

func TestUnreachable(t *testing.T) {
	s, err := services.NewExec(filepath.Join(t.TempDir(), "none")).State(t.Context(), "a")
	if !errors.Is(err, services.ErrUnreachable) || s.Active != cluster.Unknown {
		t.Errorf("got %+v, %v", s, err)
	}
}

func TestRestart(t *testing.T) {
	n := newNode(t, map[string]string{"a.service": sleeper})
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV} {
		before := n.start("a")
		if err := n.Kill(t.Context(), "a", sig); err != nil {
			t.Fatal(err)
		}
		n.eventually("it runs again", func() bool {
			s := n.state("a")
			return s.Active == cluster.Yes && s.MainPID != before.MainPID
		})
	}
	// A signal that ends a service in order is no failure.
	if err := n.Kill(t.Context(), "a", syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	n.eventually("it is dead", func() bool { return n.state("a").Sub == services.SubDead })
}

func TestStartCutsRestartSecShort(t *testing.T) {
	n := newNode(t, map[string]string{"a.service": strings.Replace(sleeper, "50ms", "1h", 1)})
	n.start("a")
	if err := n.Kill(t.Context(), "a", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.eventually("it waits", func() bool { return n.state("a").Sub == services.SubAutoRestart })
	if s := n.start("a"); s.Active != cluster.Yes {
		t.Errorf("after the start: %+v", s)
	}
	if err := n.Kill(t.Context(), "a", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.eventually("it waits", func() bool { return n.state("a").Sub == services.SubAutoRestart })
	if err := n.Stop(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if s := n.state("a"); s.Sub != services.SubDead {
		t.Errorf("after the stop: %+v", s)
	}
}

func TestStartPre(t *testing.T) {
	n := newNode(t, map[string]string{"a.service": `[Service]
ExecStartPre=/usr/bin/test ! -e DIR/mark
ExecStartPre=-/usr/bin/false
ExecStartPre=/usr/bin/touch DIR/touched
ExecStart=/usr/bin/sleep 1000
Restart=on-failure
RestartSec=50ms
`})
	n.write("mark", "")
	err := n.Start(t.Context(), "a")
	if !errors.Is(err, services.ErrFailed) || !strings.Contains(err.Error(), "test ! -e") {
		t.Errorf("start with the mark: %v", err)
	}
	// Between two attempts.
	n.eventually("it has failed", func() bool { s := n.state("a"); return s.Active == cluster.No && s.Result == services.ResultExit })
	if _, err := os.Stat(filepath.Join(n.dir, "touched")); err == nil {
		t.Error("went on after a line that failed")
	}
	// As systemd does, it tries again: without the mark it comes up by itself.
	if err := os.Remove(filepath.Join(n.dir, "mark")); err != nil {
		t.Fatal(err)
	}
	n.eventually("it runs", func() bool { return n.state("a").Active == cluster.Yes })
}

func TestStopEscalates(t *testing.T) {
	n := newNode(t, map[string]string{"a.service": `[Service]
ExecStart=/bin/sh -c "trap '' TERM; echo up > DIR/up; while true; do sleep 0.01; done"
TimeoutStopSec=100ms
`})
	running := n.start("a")
	n.file("up")
	process, _ := proctree.Read(running.MainPID)
	if err := n.Stop(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if process.Alive() {
		t.Error("stop returned while the process lived")
	}
	if s := n.state("a"); s.Sub != services.SubFailed || s.Result != services.ResultTimeout {
		t.Errorf("after the stop: %+v", s)
	}
}

// A stopped process cannot act on a signal: it has to be woken.
func TestStopWakesAStoppedProcess(t *testing.T) {
	n := newNode(t, map[string]string{"a.service": sleeper})
	running := n.start("a")
	if err := n.Kill(t.Context(), "a", syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	n.eventually("it is stopped", func() bool { p, _ := proctree.Read(running.MainPID); return p.State == 'T' })
	if err := n.Stop(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if s := n.state("a"); s.Result != services.ResultSuccess {
		t.Errorf("after the stop: %+v", s)
	}
}

// The child of a killed service must be gone before the service starts again:
// PostgreSQL does not start while backends of the one before it live.
func TestLeftBehindChildrenEndBeforeRestart(t *testing.T) {
	n := newNode(t, map[string]string{"a.service": family})
	before := n.start("a")
	child := n.childOf("child")
	if err := syscall.Kill(before.MainPID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.eventually("it runs again", func() bool {
		s := n.state("a")
		return s.Active == cluster.Yes && s.MainPID != before.MainPID
	})
	if child.Alive() {
		t.Error("the service was started again while the child of the one before it lived")
	}
}

func TestStopEndsChildrenInOtherSessions(t *testing.T) {
	n := newNode(t, map[string]string{"a.service": family})
	n.start("a")
	child := n.childOf("child")
	if child.Session != child.PID {
		t.Fatalf("the child has no session of its own: %+v", child)
	}
	if err := n.Stop(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if child.Alive() {
		t.Error("stop returned while a child lived")
	}
}

// Two units die together: each one's orphan is ended, the third unit's is not.
func TestOrphansOfOthersAreLeftAlone(t *testing.T) {
	units := map[string]string{}
	for _, name := range []string{"a", "b", "c"} {
		units[name+".service"] = strings.ReplaceAll(family, "DIR/child", "DIR/child-"+name)
	}
	n := newNode(t, units)
	var children []proctree.Process
	for _, name := range []string{"a", "b", "c"} {
		n.start(name)
		children = append(children, n.childOf("child-"+name))
	}
	for _, name := range []string{"a", "b"} {
		if err := syscall.Kill(n.state(name).MainPID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	n.eventually("the orphans are gone", func() bool { return !children[0].Alive() && !children[1].Alive() })
	if !children[2].Alive() {
		t.Error("the child of the unit that lives was killed")
	}
}

func (n *node) childOf(file string) proctree.Process {
	n.t.Helper()
	pid, err := strconv.Atoi(n.file(file))
	if err != nil {
		n.t.Fatal(err)
	}
	var p proctree.Process
	n.eventually("the child has its own session", func() bool {
		p, _ = proctree.Read(pid)
		return p.Session == pid
	})
	return p
}

func TestDeathOfInitTakesTheNodeDown(t *testing.T) {
	n := newNode(t, map[string]string{"a.service": family, "b.service": sleeper})
	n.start("a")
	n.start("b")
	n.childOf("child")
	all := n.below()
	if len(all) != 4 {
		t.Fatalf("want init, two services and a child, got %+v", all)
	}
	if err := syscall.Kill(n.record().Init.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.wait()
	for _, p := range all {
		if p.Alive() {
			t.Errorf("process %d has outlived the init", p.PID)
		}
	}
}

func TestBootStartsWhatIsEnabled(t *testing.T) {
	n := newNode(t, map[string]string{"a.service": sleeper, "b.service": sleeper, "c.service": "[Service]\nExecStart=/usr/bin/sleep 1000\n"})
	if err := n.Enable(t.Context(), "a", "b"); err != nil {
		t.Fatal(err)
	}
	if err := n.Enable(t.Context(), "a"); err != nil {
		t.Errorf("enabled twice: %v", err)
	}
	if err := n.Enable(t.Context(), "c"); err == nil {
		t.Error("enabled a unit that no target wants")
	}
	if err := n.Disable(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	n.end()
	n.boot()
	t.Cleanup(n.end)
	n.eventually("a runs", func() bool { return n.state("a").Active == cluster.Yes })
	if s := n.state("b"); s.Active != cluster.No {
		t.Errorf("a disabled unit was started: %+v", s)
	}
}

func TestShutdownInOrder(t *testing.T) {
	unit := func(name, after string) string {
		return fmt.Sprintf(`[Unit]
After=%s
[Service]
ExecStart=/bin/sh -c "trap 'echo %s >> DIR/order; exit 0' TERM; echo up > DIR/%s.up; while true; do sleep 0.01; done"
`, after, name, name)
	}
	n := newNode(t, map[string]string{
		"db.service": unit("db", ""), "app.service": unit("app", "db.service other.service"), "web.service": unit("web", "app.service"),
	})
	for _, name := range []string{"db", "app", "web"} {
		n.start(name)
		n.file(name + ".up")
	}
	if err := n.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.wait()
	order, err := os.ReadFile(filepath.Join(n.dir, "order"))
	if err != nil || string(order) != "web\napp\ndb\n" {
		t.Errorf("stopped in the order %q, %v", order, err)
	}
}

func TestWatch(t *testing.T) {
	n := newNode(t, map[string]string{"a.service": sleeper})
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var subs []string
	ended := make(chan error)
	go func() {
		ended <- n.Watch(ctx, func(unit string, s services.State) {
			mu.Lock()
			defer mu.Unlock()
			subs = append(subs, s.Sub)
		})
	}()
	seen := func(want ...string) bool {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(subs, " ") == strings.Join(want, " ")
	}
	n.eventually("the present state is told", func() bool { return seen("dead") })
	before := n.start("a")
	if err := syscall.Kill(before.MainPID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	want := []string{"dead", "running", "stop-sigterm", "auto-restart", "running"}
	n.eventually("every change is told", func() bool { return seen(want...) })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: %v", err)
	}
	go func() { ended <- n.Watch(t.Context(), func(string, services.State) {}) }()
	n.end()
	if err := <-ended; !errors.Is(err, services.ErrUnreachable) {
		t.Errorf("after the death of the init: %v", err)
	}
}
