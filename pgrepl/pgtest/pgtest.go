// Package pgtest runs real PostgreSQL servers for tests: laid out as Debian
// does, on loopback addresses, as the user postgres when the test is root. No
// server outlives its test, nor the test's process.
package pgtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/pgrepl/internal/command"
)

// BinDir holds the programs of PostgreSQL.
const BinDir = "/usr/lib/postgresql/15/bin"

// Instance is one server. Its fields fit pgrepl.Config.
type Instance struct {
	Root       string
	DataDir    string
	ConfigFile string
	SocketDir  string
	SSLDir     string
	Address    string
	Port       int
	SystemUser string
	LogFile    string

	as   command.Runner
	mu   sync.Mutex
	pid  int
	done chan struct{} // closed when the server has ended
}

// Option changes what New makes.
type Option func(*Instance, *options)

type options struct{ fresh bool }

// Fresh gives the instance a system identifier of its own. Others are copies of
// one template and share one.
func Fresh(_ *Instance, o *options) { o.fresh = true }

// User is the system user that PostgreSQL runs as in tests.
func User(t testing.TB) string {
	t.Helper()
	if os.Geteuid() == 0 {
		return "postgres"
	}
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return u.Username
}

// Dir makes a folder that PostgreSQL's user can reach, and removes it after the
// test. Its path is short, as sockets need it.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pgtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// FreePort returns a TCP port that nobody uses on the address.
func FreePort(t testing.TB, address string) int {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// New makes a server that is initialised and stopped: configuration in
// ROOT/etc/postgresql/15/main, data in ROOT/var/lib/postgresql/15/main. Over
// loopback it trusts everybody as the superuser postgres.
func New(t testing.TB, address string, opts ...Option) *Instance {
	t.Helper()
	root := Dir(t)
	i := &Instance{
		Root:       root,
		DataDir:    filepath.Join(root, "var/lib/postgresql/15/main"),
		ConfigFile: filepath.Join(root, "etc/postgresql/15/main/postgresql.conf"),
		SocketDir:  filepath.Join(root, "run"),
		SSLDir:     filepath.Join(root, "ssl"),
		LogFile:    filepath.Join(root, "postgresql.log"),
		Address:    address,
		Port:       FreePort(t, address),
		SystemUser: User(t),
	}
	var o options
	for _, opt := range opts {
		opt(i, &o)
	}
	var err error
	if i.as, err = command.As(i.SystemUser); err != nil {
		t.Fatal(err)
	}
	etc := filepath.Dir(i.ConfigFile)
	for _, dir := range []string{filepath.Dir(i.DataDir), filepath.Join(etc, "conf.d"), i.SocketDir, i.SSLDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		i.own(t, dir)
	}
	if o.fresh {
		i.initdb(t, i.DataDir)
	} else {
		i.copyTemplate(t)
	}
	i.write(t, i.ConfigFile, fmt.Sprintf("data_directory = '%s'\nhba_file = '%s/pg_hba.conf'\nident_file = '%s/pg_ident.conf'\n"+
		"listen_addresses = '%s'\nport = %d\nunix_socket_directories = '%s'\nshared_buffers = 16MB\n"+
		"log_line_prefix = '%%m [%%p] %%q%%u '\ninclude_dir = 'conf.d'\n", i.DataDir, etc, etc, address, i.Port, i.SocketDir))
	i.write(t, filepath.Join(etc, "pg_hba.conf"), "local all postgres trust\nhost all all 127.0.0.0/8 trust\n")
	i.write(t, filepath.Join(etc, "pg_ident.conf"), "")
	return i
}

func (i *Instance) own(t testing.TB, path string) {
	t.Helper()
	if err := i.as.Own(path); err != nil {
		t.Fatal(err)
	}
}

func (i *Instance) write(t testing.TB, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	i.own(t, file)
}

func (i *Instance) initdb(t testing.TB, dir string) {
	t.Helper()
	_, err := i.as.Run(context.Background(), command.Op{Label: "initdb", Argv: []string{filepath.Join(BinDir, "initdb"),
		"-D", dir, "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "-A", "trust", "--no-sync", "--no-instructions"}})
	if err != nil {
		t.Fatal(err)
	}
}

var template struct {
	sync.Mutex
	dir string
}

// copyTemplate saves the second that initdb takes for every server but the
// first of the process.
func (i *Instance) copyTemplate(t testing.TB) {
	t.Helper()
	template.Lock()
	defer template.Unlock()
	if template.dir == "" {
		dir, err := os.MkdirTemp("/tmp", "pgtest-template-")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		i.own(t, dir)
		i.initdb(t, filepath.Join(dir, "main"))
		template.dir = dir
	}
	out, err := exec.Command("cp", "-a", "--reflink=auto", filepath.Join(template.dir, "main"), i.DataDir).CombinedOutput()
	if err != nil {
		t.Fatalf("copy template: %v: %s", err, out)
	}
}

// Main runs the tests of a package and then removes the template. Call it from
// TestMain: os.Exit(pgtest.Main(m)).
func Main(m *testing.M) int {
	defer func() {
		if template.dir != "" {
			os.RemoveAll(template.dir)
		}
	}()
	return m.Run()
}

// Launch starts the server and does not wait until it answers. It is stopped
// with the test.
func (i *Instance) Launch(t testing.TB) {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.running() {
		t.Fatal("the server runs already")
	}
	log, err := os.OpenFile(i.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(BinDir, "postgres"), "-D", i.DataDir, "-c", "config_file="+i.ConfigFile)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, i.as.Attr()
	first := i.done == nil
	started, done := make(chan error, 1), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the parent-death signal is the thread's
		defer runtime.UnlockOSThread()
		defer close(done)
		defer log.Close()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	i.pid, i.done = cmd.Process.Pid, done
	if first {
		t.Cleanup(func() {
			i.Kill(t)
			if err := pgrepl.ReleaseMemory(i.DataDir); err != nil {
				t.Error(err)
			}
			if t.Failed() {
				t.Logf("log of %s:\n%s", i.Address, i.Log(t))
			}
		})
	}
}

// Start launches the server and waits until it answers.
func (i *Instance) Start(t testing.TB) {
	t.Helper()
	i.Launch(t)
	deadline := time.Now().Add(60 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		c, err := net.Dial("unix", filepath.Join(i.SocketDir, ".s.PGSQL."+strconv.Itoa(i.Port)))
		if err == nil {
			c.Close()
			if i.ready(ctx) {
				cancel()
				return
			}
		}
		cancel()
		select {
		case <-i.done:
			if i.crowded(t) {
				i.Launch(t)
				continue
			}
			t.Fatalf("the server did not start:\n%s", i.Log(t))
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server does not answer: %v\n%s", err, i.Log(t))
		}
	}
}

// crowded: the server gave up because processes of one before it, whose postmaster
// alone was killed, have not ended yet.
func (i *Instance) crowded(t testing.TB) bool {
	log := i.Log(t)
	return strings.Contains(log[max(0, len(log)-400):], "pre-existing shared memory block")
}

// ready: an answer that is not "starting up". A refusal by pg_hba.conf is one.
func (i *Instance) ready(ctx context.Context) bool {
	c, err := pgx.Connect(ctx, i.DSN())
	if err == nil {
		c.Close(ctx)
		return true
	}
	return strings.Contains(err.Error(), "28000")
}

// DSN connects as the superuser postgres over TCP.
func (i *Instance) DSN() string {
	return fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres sslmode=disable", i.Address, i.Port)
}

// PID is the postmaster's; 0 when it does not run.
func (i *Instance) PID() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.running() {
		return 0
	}
	return i.pid
}

func (i *Instance) running() bool {
	if i.done == nil {
		return false
	}
	select {
	case <-i.done:
		return false
	default:
		return true
	}
}

// Stop ends the server by SIGINT, a fast shutdown, and waits for it.
func (i *Instance) Stop(t testing.TB) {
	t.Helper()
	i.signal(t, syscall.SIGINT)
}

func (i *Instance) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.running() {
		return
	}
	if err := syscall.Kill(i.pid, sig); err != nil {
		t.Fatal(err)
	}
	select {
	case <-i.done:
	case <-time.After(60 * time.Second):
		t.Fatalf("the server did not stop:\n%s", i.Log(t))
	}
}

// Kill ends the postmaster and all its children by SIGKILL, as a power cut
// would, and waits for it. A server that does not run is no error.
func (i *Instance) Kill(t testing.TB) {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.running() {
		return
	}
	pids := i.children()
	for _, pid := range append([]int{i.pid}, pids...) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	<-i.done
	for _, pid := range pids {
		for syscall.Kill(pid, 0) == nil && !zombie(pid) {
			runtime.Gosched()
		}
	}
}

func (i *Instance) children() (pids []int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", i.pid, i.pid))
	if err != nil {
		return nil
	}
	for _, f := range strings.Fields(string(text)) {
		if pid, err := strconv.Atoi(f); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func zombie(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return strings.HasPrefix(rest, "Z")
}

// Freeze stops every process of the server; Thaw lets them go on.
func (i *Instance) Freeze(t testing.TB) { i.all(t, syscall.SIGSTOP) }

// Thaw ends Freeze.
func (i *Instance) Thaw(t testing.TB) { i.all(t, syscall.SIGCONT) }

func (i *Instance) all(t testing.TB, sig syscall.Signal) {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, pid := range append([]int{i.pid}, i.children()...) {
		// A child may have ended since it was listed; the postmaster may not.
		if err := syscall.Kill(pid, sig); err != nil && (pid == i.pid || err != syscall.ESRCH) {
			t.Fatal(err)
		}
	}
}

// Log is what the server has logged, at most the last 100 lines.
func (i *Instance) Log(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(i.LogFile)
	if err != nil {
		return err.Error()
	}
	lines := slices.Collect(strings.Lines(string(text)))
	return strings.Join(lines[max(0, len(lines)-100):], "")
}
