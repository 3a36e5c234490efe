package packaging_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/lab"
	"github.com/understudy-ha/understudy/packaging"
)

// The packages are made as an operator makes them, and judged by Debian's own
// programs: lintian, dpkg and apt, the last two on a whole machine with systemd.
func TestPackages(t *testing.T) {
	dir := t.TempDir()
	said := command(t, "make", "-C", "..", "package", "VERSION=1.0.0", "DIST="+dir)
	t.Log(said)
	deb, rpm := only(t, dir, "understudy_1.0.0-1_*.deb"), only(t, dir, "understudy-1.0.0-1.*.rpm")
	t.Run("lintian", func(t *testing.T) {
		t.Parallel()
		t.Log(command(t, "lintian", "--allow-root", "--fail-on", "error", deb))
	})
	t.Run("contents", func(t *testing.T) { contents(t, deb, rpm) })
	t.Run("machine", func(t *testing.T) {
		t.Parallel()
		onMachine(t, deb)
	})
}

// contents: both packages have the same files, among them all units, and none that
// would be in somebody's way.
func contents(t *testing.T, deb, rpm string) {
	t.Log(command(t, "rpm", "--checksig", rpm))
	var files []string
	for line := range strings.Lines(command(t, "dpkg-deb", "--contents", deb)) {
		if f := strings.Fields(line); !strings.HasSuffix(f[5], "/") {
			files = append(files, strings.TrimPrefix(f[5], "."))
		}
	}
	var same []string
	for line := range strings.Lines(command(t, "rpm", "--query", "--list", "--verbose", "--package", rpm)) {
		if f := strings.Fields(line); f[0][0] != 'd' {
			same = append(same, f[len(f)-1])
		}
	}
	slices.Sort(files)
	slices.Sort(same)
	if !slices.Equal(files, same) {
		t.Errorf("deb: %q\nrpm: %q", files, same)
	}
	for _, unit := range packaging.Daemons() {
		page := "/usr/share/man/man8/" + strings.TrimSuffix(unit, ".service") + ".8.gz"
		for _, file := range []string{"/usr/lib/systemd/system/" + unit, page} {
			if !slices.Contains(files, file) {
				t.Errorf("there is no %s", file)
			}
		}
	}
	for _, file := range files {
		if strings.Contains(file, "postgresql@") || file == "/etc/understudy/understudy.yaml" {
			t.Errorf("%s would take effect before a cluster is started", file)
		}
	}
}

// host is the machine that a package is tried on.
type host struct {
	t *testing.T
	m *lab.Machine
}

const (
	address  = "10.77.8.1"
	postgres = "postgresql@15-main.service"
	packages = "/srv/packages"
)

func onMachine(t *testing.T, deb string) {
	l, err := lab.Raise(t.Context(), netip.MustParsePrefix("10.77.8.254/24"), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if os.Geteuid() != 0 {
		if !errors.Is(err, lab.ErrNeedsRoot) {
			t.Errorf("raise a lab as an ordinary user: %v, want %v", err, lab.ErrNeedsRoot)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	next := nextVersion(t, deb)
	m, err := l.Machine(t.Context(), "alpha", netip.MustParseAddr(address), lab.Mount{Host: filepath.Dir(deb), Inside: packages})
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t, m}
	h.boot()
	h.do("pg_createcluster 15 main --start")
	h.await("pg_isready --quiet")
	h.sql("create table kept (what text)")
	h.sql("insert into kept values ('before understudy')")

	h.install(deb)
	h.member()
	h.upgrade(next)
	h.refuses()
	h.apart()
	h.purge()
	h.withoutPostgres(deb)
}

// install: nothing of understudy runs, also after a boot, and Debian's PostgreSQL is
// as it was.
func (h *host) install(deb string) {
	h.t.Helper()
	const unit = "systemctl cat " + postgres + "; systemctl show --property=Type,MainPID,DropInPaths,NeedDaemonReload " + postgres
	before := h.do(unit)
	h.apt("install", filepath.Join(packages, filepath.Base(deb)))
	h.is("PostgreSQL's unit", h.do(unit), before)
	h.idle()
	h.is("the folders", h.do(`stat --format='%n %a %U %G' /etc/understudy /etc/understudy/* /var/lib/understudy /var/lib/understudy/* /var/log/understudy /var/log/understudy/* /run/understudy /run/understudy/*`),
		`/etc/understudy 755 root root
/etc/understudy/cluster-ssl 750 understudy understudy
/var/lib/understudy 755 understudy understudy
/var/lib/understudy/divergence 2770 postgres understudy
/var/log/understudy 2770 understudy understudy
/var/log/understudy/cluster.log 660 understudy understudy
/run/understudy 755 understudy understudy
/run/understudy/postgresql 2775 postgres understudy
`)
	h.is("the version", h.do("understudy --version"), "understudy version 1.0.0\n")
	for _, user := range []string{"understudy", "understudy-consul", "postgres"} {
		h.do("id --name --groups " + user + " | grep --word-regexp understudy")
	}
	h.is("completion", h.do(`. /usr/share/bash-completion/completions/understudy
COMP_WORDS=(understudy cluster st) COMP_CWORD=2
_understudy
echo "${COMPREPLY[@]}"`), "start status\n")
	h.do("echo line >>/var/log/understudy/cluster.log; logrotate --force /etc/logrotate.d/understudy; grep line /var/log/understudy/cluster.log.1; test ! -s /var/log/understudy/cluster.log")
	if err := h.m.PowerOff(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	h.boot()
	h.idle()
	h.await("pg_isready --quiet")
}

// idle: no unit of understudy was started or will be by a boot.
func (h *host) idle() {
	h.t.Helper()
	for _, unit := range packaging.Daemons() {
		h.is(unit, h.do("systemctl is-active "+unit+" || true; systemctl is-enabled "+unit+" || true"), "inactive\ndisabled\n")
	}
}

// member starts a cluster.
func (h *host) member() {
	h.t.Helper()
	h.do("echo 'services: {manager: systemd}' >/etc/understudy/understudy.yaml")
	h.do("understudy cluster start --cluster-node-name alpha --cluster-host-ip " + address)
	h.is("PostgreSQL's unit", h.do("systemctl show --property=Type --value "+postgres), "exec\n")
}

// upgrade: every daemon is restarted, Consul, which is the same, and PostgreSQL are
// not, and the node is active all along. What lies over the unit of PostgreSQL is
// renewed.
func (h *host) upgrade(deb string) {
	h.t.Helper()
	const guard = "/etc/systemd/system/" + postgres + ".d/understudy.conf"
	text := h.do("cat " + guard)
	h.do("sed --in-place s/RestartSec=1$/RestartSec=7/ " + guard + "; systemctl daemon-reload")
	units := append(packaging.Daemons(), postgres)
	before := h.pids(units)
	h.apt("install", filepath.Join(packages, filepath.Base(deb)))
	after := h.pids(units)
	h.is("the drop-in", h.do("cat "+guard), text)
	h.is("what systemd has of it", h.do("systemctl show --property=RestartUSec,NeedDaemonReload "+postgres), "RestartUSec=1s\nNeedDaemonReload=no\n")
	for _, unit := range units {
		same := before[unit] == after[unit]
		if stays := unit == postgres || unit == "understudy-consul.service"; same != stays || after[unit] == "0" {
			h.t.Errorf("%s: process %s before the upgrade, %s after it", unit, before[unit], after[unit])
		}
	}
	h.await(`understudy cluster nodes get alpha --json | grep --quiet '"state": *"leader"'`)
	var status struct {
		Active string
		Epoch  int
	}
	said := h.do("understudy cluster status --json")
	if err := json.Unmarshal([]byte(said), &status); err != nil || status.Active != "alpha" || status.Epoch != 1 {
		h.t.Errorf("after the upgrade: %v, %s", err, said)
	}
	h.sql("insert into kept values ('after the upgrade')")
}

func (h *host) pids(units []string) map[string]string {
	h.t.Helper()
	pids := map[string]string{}
	for _, unit := range units {
		pids[unit] = strings.TrimSpace(h.do("systemctl show --property=MainPID --value " + unit))
	}
	return pids
}

// refuses: a member is not removed, and all goes on.
func (h *host) refuses() {
	h.t.Helper()
	before := h.pids(packaging.Daemons())
	for _, how := range []string{"remove", "purge"} {
		said := h.do("! apt-get " + how + " --yes understudy 2>&1")
		if !strings.Contains(said, "this host is a member of a cluster") {
			h.t.Errorf("%s says %s", how, said)
		}
	}
	h.is("the package", h.do("dpkg-query --show --showformat='${Status} ${Version}' understudy"), "install ok installed 2.0.0-1")
	if after := h.pids(packaging.Daemons()); fmt.Sprint(before) != fmt.Sprint(after) {
		h.t.Errorf("processes %v, then %v", before, after)
	}
}

// apart takes the cluster apart. PostgreSQL runs as before there was one.
func (h *host) apart() {
	h.t.Helper()
	h.do(`mkdir -p /var/lib/understudy/divergence/one /var/lib/understudy/file-sync/versions/data/replaced
echo rows >/var/lib/understudy/divergence/one/rows.jsonl
echo file >/var/lib/understudy/file-sync/versions/data/replaced/file`)
	h.t.Log(h.do("understudy cluster teardown --yes"))
	h.await("pg_isready --quiet")
	h.is("PostgreSQL's unit", h.do("systemctl show --property=Type --value "+postgres), "forking\n")
	h.is("what listens", h.do("systemctl list-units --no-legend --plain --state=active 'understudy-*'; ss --no-header --listening --unix --processes | grep understudy || true; find /run/understudy -type s"), "")
	h.sql("insert into kept values ('after the teardown')")
}

// purge: what is not to be had anywhere else is left, and named. PostgreSQL runs on.
func (h *host) purge() {
	h.t.Helper()
	h.apt("remove", "understudy")
	h.do("test ! -e /usr/lib/understudy; test -e /etc/logrotate.d/understudy; test -e /etc/understudy/understudy.yaml")
	h.do("echo mine >/var/lib/understudy/somebody; echo stale >/var/lib/understudy/handler.json")
	said := h.apt("purge", "understudy")
	h.is("what is left", h.do(`find /var/lib/understudy -type f | sort; ls -d /etc/understudy /var/log/understudy /run/understudy /etc/logrotate.d/understudy /etc/systemd/system/*/understudy* 2>/dev/null || true`),
		`/var/lib/understudy/divergence/one/rows.jsonl
/var/lib/understudy/file-sync/versions/data/replaced/file
/var/lib/understudy/somebody
`)
	for _, left := range []string{"divergence", "file-sync", "somebody"} {
		if !strings.Contains(said, "/var/lib/understudy/"+left) {
			h.t.Errorf("purge does not say that it leaves %q:\n%s", left, said)
		}
	}
	h.is("the data", h.sql("select what from kept"), "before understudy\nafter the upgrade\nafter the teardown\n")
}

// withoutPostgres: a host on which PostgreSQL is not installed, as a runner, and then
// is.
func (h *host) withoutPostgres(deb string) {
	h.t.Helper()
	h.do("rm -r /var/lib/understudy; systemctl stop " + postgres + "; userdel postgres")
	h.apt("install", filepath.Join(packages, filepath.Base(deb)))
	h.idle()
	h.do("test -d /run/understudy; test ! -e /var/lib/understudy/divergence; ! getent passwd postgres")
	h.do(`useradd --system --no-create-home postgres
dpkg-trigger --by-package=postgresql-15 /usr/lib/postgresql
dpkg --triggers-only --pending`)
	h.do("id --name --groups postgres | grep --word-regexp understudy; test -d /var/lib/understudy/divergence")
	h.apt("purge", "understudy")
	h.do("test ! -e /var/lib/understudy")
}

func (h *host) boot() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	if err := h.m.Boot(ctx); err != nil {
		h.t.Fatal(err)
	}
}

// do runs shell text as root.
func (h *host) do(text string) string {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Minute)
	defer cancel()
	out, err := h.m.Run(ctx, "root", "bash", "-c", "set -euo pipefail\n"+text)
	if err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		journal, _ := h.m.Run(ctx, "root", "journalctl", "--no-pager", "--lines=60", "--unit=understudy-*", "--unit="+postgres)
		h.t.Fatalf("%s\n%v\n%s", text, err, journal)
	}
	return out
}

func (h *host) apt(args ...string) string {
	h.t.Helper()
	began := time.Now()
	said := h.do("DEBIAN_FRONTEND=noninteractive apt-get --yes " + strings.Join(args, " "))
	h.t.Logf("apt-get %s, %.1f s\n%s", strings.Join(args, " "), time.Since(began).Seconds(), said)
	return said
}

func (h *host) sql(text string) string {
	h.t.Helper()
	return h.do(`cd /; runuser --user=postgres -- psql --quiet --no-align --tuples-only --command="` + text + `"`)
}

// await waits until shell text ends with 0.
func (h *host) await(text string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	if err := h.m.Wait(ctx, text, "bash", "-c", text); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) is(what, got, want string) {
	h.t.Helper()
	if got != want {
		h.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// nextVersion makes a package of the same files with a higher version beside one.
func nextVersion(t *testing.T, deb string) string {
	t.Helper()
	tree := filepath.Join(t.TempDir(), "tree")
	command(t, "dpkg-deb", "--raw-extract", deb, tree)
	control := filepath.Join(tree, "DEBIAN/control")
	text, err := os.ReadFile(control)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(control, []byte(strings.Replace(string(text), "Version: 1.0.0", "Version: 2.0.0", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	next := strings.Replace(deb, "1.0.0", "2.0.0", 1)
	command(t, "dpkg-deb", "--build", "-Znone", "--root-owner-group", tree, next)
	return next
}

// command runs a program to its end and returns its standard output.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	var complaints strings.Builder
	c.Stderr = &complaints
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, complaints.String())
	}
	return string(out)
}

// only returns the one file of a folder that matches.
func only(t *testing.T, dir, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(files) != 1 {
		t.Fatalf("%s in %s: %q, %v", pattern, dir, files, err)
	}
	return files[0]
}
