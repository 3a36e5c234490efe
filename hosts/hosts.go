// Package hosts makes the cluster of docs/operations.md on whole Debian machines with
// systemd, from git clone on, by running the blocks of that document as they stand.
// A fourth machine is the load balancer. It needs root, and what "packaging/setup test"
// installs.
package hosts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/rig"
	"github.com/understudy-ha/understudy/docs"
	"github.com/understudy-ha/understudy/lab"
)

// Options say what a cluster of hosts is made from.
type Options struct {
	Tree string // the root of the source tree, which holds bin/ as "make build" leaves it
	Log  *slog.Logger
	Say  func(format string, args ...any) // is told of every block that was run
}

// Hosts are whole machines on one bridge.
type Hosts struct {
	Lab    *lab.Lab
	ByName map[string]*lab.Machine
	Ran    int // blocks

	opts    Options
	lent    []lab.Mount
	adapt   *strings.Replacer
	copied  docs.Clipboard
	started bool // there is a cluster
}

const (
	network    = "10.77.0."
	repository = "/srv/understudy" // where the checkout can be cloned from

	// Balancer is the machine with HAProxy in front of the members.
	Balancer        = "front"
	balancerAddress = network + "100"

	// settleWithin is how long the cluster may take to be as good as new.
	settleWithin = 90 * time.Second
	// blockWithin bounds a block that builds everything.
	blockWithin = 5 * time.Minute
)

// Raise makes a lab without machines. The error wraps lab.ErrNeedsRoot for an ordinary
// user. Close must be called.
func Raise(ctx context.Context, o Options) (*Hosts, error) {
	l, err := lab.Raise(ctx, netip.MustParsePrefix(network+"254/24"), o.Log)
	if err != nil {
		return nil, err
	}
	h := &Hosts{
		Lab: l, ByName: map[string]*lab.Machine{}, opts: o,
		adapt: strings.NewReplacer(
			"REPOSITORY", repository, "10.0.0.", network,
			// Debian 12 has one version of PostgreSQL: the way to another one leads to
			// another database of the same.
			"pg_upgradecluster --method=upgrade -v 17 15 main", "pg_upgradecluster --method=upgrade -v 15 --rename=next 15 main",
			"postgresql-17", "postgresql-15", "pg_createcluster 17 main", "pg_createcluster 15 next",
			"/17/main", "/15/next", "/17/bin", "/15/bin", "@17-main", "@15-next",
			// One package of tests shows that the command works on a fresh host.
			"make test", "make test PACKAGES=./config/...",
		),
	}
	if err := h.lend(ctx); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// Close deletes the machines. It returns when nothing of them is left.
func (h *Hosts) Close() error { return h.Lab.Close() }

// lend gathers what the machines have of this host, because they have no way to the
// network: the repository, Go and its modules, and Consul and nfpm, which take minutes
// to build. What Go has built here it need not build again. The notes application is
// the operator's own.
func (h *Hosts) lend(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "go", "env", "-json", "GOCACHE", "GOMODCACHE", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("find Go: %w", err)
	}
	var env struct{ GOCACHE, GOMODCACHE, GOROOT string }
	if err := json.Unmarshal(out, &env); err != nil {
		return fmt.Errorf("find Go: %w", err)
	}
	tree, err := filepath.Abs(h.opts.Tree)
	if err != nil {
		return err
	}
	mirror := filepath.Join(h.Lab.Dir(), "checkout")
	if err := checkout(ctx, tree, mirror); err != nil {
		return fmt.Errorf("copy the source tree: %w", err)
	}
	home := "/home/" + lab.Admin
	h.lent = []lab.Mount{
		{Host: mirror, Inside: repository},
		{Host: env.GOROOT, Inside: "/usr/local/go"},
		{Host: env.GOMODCACHE, Inside: home + "/go/pkg/mod"},
		{Host: env.GOCACHE, Inside: home + "/.cache/go-build", Over: true},
	}
	for program, inside := range map[string]string{"consul": "/usr/local/bin/consul", "nfpm": "/usr/local/bin/nfpm", "notes": "/usr/bin/notes"} {
		file, err := filepath.EvalSymlinks(filepath.Join(tree, "bin", program))
		if err != nil {
			return fmt.Errorf("%w: 'make build' and 'packaging/setup test' make it", err)
		}
		h.lent = append(h.lent, lab.Mount{Host: file, Inside: inside})
	}
	return nil
}

// checkout makes a repository with one commit: the tree as it is now, with what is not
// committed yet.
func checkout(ctx context.Context, tree, dir string) error {
	out, err := exec.CommandContext(ctx, "git", "-C", tree, "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		if err := copyFile(filepath.Join(tree, name), filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, args := range [][]string{
		{"init", "--quiet"}, {"add", "--all", "--force"},
		{"-c", "user.name=hosts", "-c", "user.email=hosts@localhost", "commit", "--quiet", "--message=the tree under test"},
	} {
		if out, err := exec.CommandContext(ctx, "git", append([]string{"-C", dir}, args...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("git %s: %w: %s", args[0], err, out)
		}
	}
	return nil
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

// Add boots a machine with the address NUMBER of the lab's network.
func (h *Hosts) Add(ctx context.Context, name string, number int) error {
	address, err := netip.ParseAddr(fmt.Sprint(network, number))
	if err != nil {
		return err
	}
	if h.ByName[name], err = h.Lab.Machine(ctx, name, address, h.lent...); err != nil {
		return err
	}
	return h.Boot(ctx, name)
}

// Boot switches a machine on and waits until its systemd is up.
func (h *Hosts) Boot(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	return h.ByName[name].Boot(ctx)
}

// Script runs shell text on a machine, in the home of a user with sudo, and returns
// what it said.
func (h *Hosts) Script(ctx context.Context, name, text string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, blockWithin)
	defer cancel()
	out, err := h.ByName[name].Run(ctx, lab.Admin, "bash", "-c", "set -euo pipefail\n"+text)
	if err != nil {
		return out, fmt.Errorf("on %s: %s\n%w", name, text, err)
	}
	return out, nil
}

// Run runs blocks, each on the machine that it names; "all" are the members. From the
// start of the cluster on, each block finds it healthy.
func (h *Hosts) Run(ctx context.Context, list []docs.Block) error {
	for _, b := range list {
		text := h.copied.Paste(h.adapt.Replace(b.Text))
		on := []string{b.Attrs["on"]}
		if on[0] == "all" {
			on = docs.Members
		}
		for _, name := range on {
			began := time.Now()
			out, err := h.Script(ctx, name, text)
			h.opts.Say("%s on %s, %.1f s\n%s%s", b.Where, name, time.Since(began).Seconds(), text, out)
			if err != nil {
				return err
			}
			h.copied.Copy(out)
			if strings.Contains(text, "make package") {
				if err := h.carry(name); err != nil {
					return err
				}
			}
		}
		h.Ran++
		h.started = h.started || strings.Contains(text, "cluster start")
		if h.started {
			if _, err := h.Healthy(ctx, rig.Status{}); err != nil {
				return err
			}
		}
	}
	return nil
}

// carry copies the package that was made on one member to the homes of all, as the
// text between the blocks says.
func (h *Hosts) carry(from string) error {
	home := "/home/" + lab.Admin
	made, err := filepath.Glob(h.ByName[from].Path(home + "/understudy/dist/understudy_*.deb"))
	if err != nil {
		return err
	}
	if len(made) != 1 {
		return fmt.Errorf("packages on %s: %q", from, made)
	}
	for _, name := range docs.Members {
		if err := copyFile(made[0], h.ByName[name].Path(filepath.Join(home, filepath.Base(made[0])))); err != nil {
			return err
		}
	}
	return nil
}

// Install follows operations.md up to where all members have joined, and returns the
// blocks that are left.
func (h *Hosts) Install(ctx context.Context) (rest []docs.Block, err error) {
	for i, name := range docs.Members {
		if err := h.Add(ctx, name, i+1); err != nil {
			return nil, err
		}
	}
	document := filepath.Join(h.opts.Tree, "docs/operations.md")
	all, err := docs.ForHosts(document)
	if err != nil {
		return nil, err
	}
	for i, b := range all {
		if strings.Contains(b.Text, "cluster start") {
			if err := h.Run(ctx, all[:i]); err != nil {
				return nil, err
			}
			if err := h.application(ctx, document); err != nil {
				return nil, err
			}
			all = all[i:]
			break
		}
	}
	for i, b := range all {
		if strings.Contains(b.Text, "--cluster-node-name gamma") {
			return all[i+1:], h.Run(ctx, all[:i+1])
		}
	}
	return nil, fmt.Errorf("%s does not start a cluster and have gamma join", document)
}

// Balance puts HAProxy in front of the members, with what the command prints.
func (h *Hosts) Balance(ctx context.Context) error {
	if err := h.Add(ctx, Balancer, 100); err != nil {
		return err
	}
	text, err := h.Script(ctx, docs.Members[1], "sudo understudy haproxy-config --port 80:8080")
	if err != nil {
		return err
	}
	if err := os.WriteFile(h.ByName[Balancer].Path("/etc/haproxy/haproxy.cfg"), []byte(text), 0o644); err != nil {
		return err
	}
	_, err = h.Script(ctx, Balancer, "sudo systemctl enable --now haproxy.service && sudo systemctl restart haproxy.service")
	return err
}

// Client is how a client of the database reaches it through the load balancer.
func (h *Hosts) Client() probe.Target {
	return probe.Target{Node: Balancer, DSN: "postgresql://notes:notes@" + balancerAddress + ":5432/postgres?sslmode=disable"}
}

// application puts the notes application on all members, as an operator has his own,
// with the configuration that the document shows.
func (h *Hosts) application(ctx context.Context, document string) error {
	blocks, err := docs.Blocks(document)
	if err != nil {
		return err
	}
	var conf string
	for _, b := range blocks {
		if b.Lang == "yaml" {
			conf = b.Text
		}
	}
	for _, name := range docs.Members {
		if _, err := h.Script(ctx, name, `sudo adduser --quiet --system --group --no-create-home notes
sudo install -d -o notes -g notes /var/lib/notes /var/lib/notes/files
sudo cp `+repository+`/example/notes/units/*.service /etc/systemd/system/
sudo systemctl daemon-reload
echo 'host postgres notes `+network+`0/24 scram-sha-256' | sudo tee --append /etc/postgresql/15/main/pg_hba.conf >/dev/null
sudo tee /etc/understudy/understudy.yaml >/dev/null <<'END'
`+conf+"END\n"); err != nil {
			return err
		}
	}
	_, err = h.Script(ctx, docs.Members[0], `sudo systemctl start postgresql@15-main.service
until sudo -u postgres psql --quiet --command='select 1' >/dev/null 2>&1; do sleep 0.1; done
sudo -u postgres psql --quiet <<'END'
create role notes login password 'notes';
grant create on database postgres to notes;
grant create on schema public to notes;
create table before_understudy (what text);
insert into before_understudy values ('kept');
END`)
	return err
}

// Healthy waits until the cluster is as good as new, in an epoch after before's.
func (h *Hosts) Healthy(ctx context.Context, before rig.Status) (rig.Status, error) {
	var s rig.Status
	err := h.Await(ctx, "the cluster is healthy", func() (err error) {
		if s, err = h.Status(ctx, docs.Members[0]); err != nil {
			return err
		}
		if len(s.Nodes) == 1 && s.Active != "" {
			return nil // it has nobody yet who could confirm its commits
		}
		if ailing := rig.Ailments(s); len(ailing) > 0 || s.Epoch <= before.Epoch {
			return fmt.Errorf("epoch %d: %v", s.Epoch, ailing)
		}
		return nil
	})
	return s, err
}

// Status asks a member for the cluster's.
func (h *Hosts) Status(ctx context.Context, name string) (s rig.Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := h.ByName[name].Run(ctx, "root", "bash", "-c", "understudy cluster status --json 2>/dev/null")
	if out == "" {
		return s, errors.Join(errors.New("no status"), err)
	}
	return s, json.Unmarshal([]byte(out), &s)
}

// Await asks until nil comes. The error tells what the daemons said last.
func (h *Hosts) Await(ctx context.Context, what string, ok func() error) error {
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w\n%s", what, err, h.journals())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// journals are the last words of the members' daemons.
func (h *Hosts) journals() string {
	var all strings.Builder
	for _, name := range docs.Members {
		if m := h.ByName[name]; m != nil {
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
