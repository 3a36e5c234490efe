package docs

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/lab"
)

// machines are whole hosts on which blocks are run.
type machines struct {
	t       *testing.T
	lab     *lab.Lab
	lent    []lab.Mount
	byName  map[string]*lab.Machine
	adapt   *strings.Replacer
	words   session // what a person would copy
	started bool    // there is a cluster
	ran     int
}

const (
	network    = "10.77.0."
	repository = "/srv/understudy" // where the checkout can be cloned from
)

// newHosts raises a lab, or returns nil for a user who cannot: then it has tested
// that the reason is given.
func newHosts(t *testing.T) *machines {
	t.Helper()
	l, err := lab.Raise(t.Context(), netip.MustParsePrefix(network+"254/24"), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if os.Geteuid() != 0 {
		if !errors.Is(err, lab.ErrNeedsRoot) {
			t.Errorf("raise a lab as an ordinary user: %v, want %v", err, lab.ErrNeedsRoot)
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
	return &machines{
		t: t, lab: l, lent: lent(t), byName: map[string]*lab.Machine{}, words: session{t: t},
		adapt: strings.NewReplacer(
			"REPOSITORY", repository, "10.0.0.", network,
			// All packages are what this very test is one of. One of them
			// shows that the command works on a fresh host.
			"make test", "make test PACKAGES=./config/...",
		),
	}
}

// lent is what the machines have of this host, because they have no way to the
// network: the repository, Go and its modules, and Consul and nfpm, which take minutes
// to build. What Go has built for these tests it need not build again. The notes
// application is the operator's own.
func lent(t *testing.T) []lab.Mount {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", "-json", "GOCACHE", "GOMODCACHE", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	var env struct{ GOCACHE, GOMODCACHE, GOROOT string }
	if err := json.Unmarshal(out, &env); err != nil {
		t.Fatal(err)
	}
	consul, err := filepath.EvalSymlinks(filepath.Join(binaries(t), "consul"))
	if err != nil {
		t.Fatal(err)
	}
	nfpm, err := exec.LookPath("nfpm")
	if err != nil {
		t.Fatalf("%v: 'packaging/setup test' makes it", err)
	}
	home := "/home/" + lab.Admin
	return []lab.Mount{
		{Host: checkout(t), Inside: repository},
		{Host: env.GOROOT, Inside: "/usr/local/go"},
		{Host: env.GOMODCACHE, Inside: home + "/go/pkg/mod"},
		{Host: env.GOCACHE, Inside: home + "/.cache/go-build", Over: true},
		{Host: consul, Inside: "/usr/local/bin/consul"},
		{Host: nfpm, Inside: "/usr/local/bin/nfpm"},
		{Host: filepath.Join(binaries(t), "notes"), Inside: "/usr/bin/notes"},
	}
}

// checkout is a repository with one commit: this tree as it is now, with what is
// not committed yet.
func checkout(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), "git", "-C", "..", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		if err := copyFile(filepath.Join("..", name), filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"init", "--quiet"}, {"add", "--all", "--force"},
		{"-c", "user.name=docs", "-c", "user.email=docs@localhost", "commit", "--quiet", "--message=the tree under test"},
	} {
		if out, err := exec.CommandContext(t.Context(), "git", append([]string{"-C", dir}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("git %s: %v: %s", args[0], err, out)
		}
	}
	return dir
}

func copyFile(from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, text, info.Mode().Perm())
}

// add boots a machine with an address of the lab's network.
func (h *machines) add(name string, number int) *lab.Machine {
	h.t.Helper()
	address := netip.MustParsePrefix(network + "254/24").Addr().As4()
	address[3] = byte(number)
	m, err := h.lab.Machine(h.t.Context(), name, netip.AddrFrom4(address), h.lent...)
	if err != nil {
		h.t.Fatal(err)
	}
	h.byName[name] = m
	h.boot(name)
	return m
}

func (h *machines) boot(name string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), settleWithin)
	defer cancel()
	if err := h.byName[name].Boot(ctx); err != nil {
		h.t.Fatal(err)
	}
}

// run runs blocks, each on the machine that it names; "all" are the members. From
// the start of the cluster on, each block finds it healthy.
func (h *machines) run(list []block) {
	h.t.Helper()
	for _, b := range list {
		text := h.adapt.Replace(b.text)
		text = strings.NewReplacer("TOKEN_ID", h.words.tokenID, "TOKEN", h.words.token).Replace(text)
		on := []string{b.attrs["on"]}
		if on[0] == "all" {
			on = members
		}
		for _, name := range on {
			began := time.Now()
			out := h.script(name, text)
			h.t.Logf("%s on %s, %.1f s\n%s%s", b.where, name, time.Since(began).Seconds(), text, out)
			h.words.note(out)
			if strings.Contains(text, "make package") {
				h.carry(name)
			}
		}
		h.ran++
		h.started = h.started || strings.Contains(text, "cluster start")
		if h.started {
			h.healthy()
		}
	}
}

// carry copies the package that was made on one member to the homes of all, as the
// text between the blocks says.
func (h *machines) carry(from string) {
	h.t.Helper()
	home := "/home/" + lab.Admin
	made, err := filepath.Glob(h.byName[from].Path(home + "/understudy/dist/understudy_*.deb"))
	if err != nil || len(made) != 1 {
		h.t.Fatalf("packages on %s: %q, %v", from, made, err)
	}
	for _, name := range members {
		if err := copyFile(made[0], h.byName[name].Path(filepath.Join(home, filepath.Base(made[0])))); err != nil {
			h.t.Fatal(err)
		}
	}
}

// blockWithin bounds a block that builds everything.
const blockWithin = 5 * time.Minute

// script runs shell text in the home of a user with sudo.
func (h *machines) script(name, text string) string {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), blockWithin)
	defer cancel()
	out, err := h.byName[name].Run(ctx, lab.Admin, "bash", "-c", "set -euo pipefail\n"+text)
	if err != nil {
		h.t.Fatalf("on %s: %s\n%v", name, text, err)
	}
	return out
}

// await waits until nil comes.
func (h *machines) await(what string, ok func() error) {
	h.t.Helper()
	deadline := time.Now().Add(settleWithin)
	err := ok()
	for ; err != nil && time.Now().Before(deadline); err = ok() {
		time.Sleep(200 * time.Millisecond)
	}
	if err != nil {
		h.t.Fatalf("wait until %s: %v\n%s", what, err, h.journals())
	}
}

// journals are the last words of the members' daemons.
func (h *machines) journals() string {
	var all strings.Builder
	for _, name := range members {
		if m := h.byName[name]; m != nil {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			out, err := m.Run(ctx, "root", "journalctl", "--no-pager", "--lines=40", "--unit=understudy-*", "--unit=postgresql@15-main", "--output=short-precise")
			cancel()
			all.WriteString(name + ":\n" + out)
			if err != nil {
				all.WriteString(err.Error())
			}
		}
	}
	return all.String()
}
