package hosts

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/dev/rig"
	"github.com/understudy-ha/understudy/docs"
	"github.com/understudy-ha/understudy/lab"
)

// TestHosts is the life of a cluster on whole machines, from git clone to purge: what
// operations.md says is done as it stands, by a user with sudo, and in between happens
// what happens to hosts, under a client that writes through the load balancer.
func TestHosts(t *testing.T) {
	ctx := t.Context()
	hosts, err := Raise(ctx, Options{Tree: "..", Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Say: t.Logf})
	if os.Geteuid() != 0 {
		if !errors.Is(err, lab.ErrNeedsRoot) {
			t.Errorf("raise hosts as an ordinary user: %v, want %v", err, lab.ErrNeedsRoot)
		}
		return
	}
	must(t, err)
	h := &story{t, hosts}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	h.readme()
	rest, err := h.Install(ctx)
	must(t, err)
	h.adopted()
	at := 0
	for at < len(rest) && !strings.Contains(rest[at].Text, "nodes remove") {
		at++
	}
	must(t, h.Run(ctx, rest[:at]))
	h.leastPrivilege("beta")

	h.faults()
	h.allGoDown()
	if h.healthy().Active != "alpha" { // as operations.md has it from here on
		h.script("beta", "sudo understudy cluster set-active alpha")
	}
	must(t, h.Run(ctx, rest[at:]))
	h.apart()
	if h.Ran < 15 {
		t.Errorf("only %d blocks were run", h.Ran)
	}
}

// story is a cluster of hosts of which everything goes well, or the test ends.
type story struct {
	t *testing.T
	*Hosts
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (h *story) script(name, text string) string {
	h.t.Helper()
	out, err := h.Script(h.t.Context(), name, text)
	must(h.t, err)
	return out
}

func (h *story) await(what string, ok func() error) {
	h.t.Helper()
	must(h.t, h.Await(h.t.Context(), what, ok))
}

func (h *story) healthy() rig.Status { h.t.Helper(); return h.healthyAfter(rig.Status{}) }

// healthyAfter is healthy in a later epoch.
func (h *story) healthyAfter(before rig.Status) rig.Status {
	h.t.Helper()
	s, err := h.Healthy(h.t.Context(), before)
	must(h.t, err)
	return s
}

// readme does on a fresh machine what the README says.
func (h *story) readme() {
	h.t.Helper()
	must(h.t, h.Add(h.t.Context(), "fresh", 9))
	blocks, err := docs.ForHosts("../README.md")
	must(h.t, err)
	must(h.t, h.Run(h.t.Context(), blocks))
	must(h.t, h.ByName["fresh"].PowerCut(h.t.Context()))
}

// adopted: the first host had a database, which is everybody's now, and Debian's
// configuration of it is as it was.
func (h *story) adopted() {
	h.t.Helper()
	for _, name := range docs.Members {
		if got := h.script(name, "cd /; sudo -u postgres psql --no-align --tuples-only --command='select what from before_understudy'"); got != "kept\n" {
			h.t.Errorf("%s has %q of what was there before", name, got)
		}
	}
	h.script("alpha", `cd /etc/postgresql/15/main
sudo grep --recursive --quiet understudy conf.d
! sudo grep --quiet understudy postgresql.conf pg_hba.conf pg_ident.conf`)
}

// leastPrivilege checks who the daemons of a host are, and what is refused to them.
func (h *story) leastPrivilege(host string) {
	h.t.Helper()
	for daemon, user := range map[string]string{
		"consul": "understudy-consul", "consul-watcher": "understudy", "check-runner": "understudy",
		"file-sync": "understudy", "handler-runner": "understudy", "postgres-helper": "postgres",
	} {
		if got := h.script(host, "stat --format=%U /proc/$(systemctl show --property=MainPID --value understudy-"+daemon+")"); strings.TrimSpace(got) != user {
			h.t.Errorf("%s runs as %q, want %s", daemon, got, user)
		}
	}
	for what, c := range map[string]struct{ command, says string }{
		"a unit of understudy.yaml":             {"sudo runuser -u understudy -- systemctl --no-ask-password start notes-web.service && echo done", "done"},
		"another unit":                          {"sudo runuser -u understudy -- systemctl --no-ask-password restart dbus.service 2>&1 || true", "Access denied"},
		"another verb":                          {"sudo runuser -u understudy -- systemctl --no-ask-password reload notes-web.service 2>&1 || true", "Access denied"},
		"the unit files":                        {"sudo runuser -u understudy -- systemctl --no-ask-password enable notes-web.service 2>&1 || true", "Failed to enable unit"},
		"the helper, by another of the group":   {"sudo runuser -u understudy-consul -- curl --silent --show-error --unix-socket /run/understudy/postgres-helper.sock http://x 2>&1 || true", "connect"},
		"the CA's key, by another of the group": {"sudo runuser -u understudy-consul -- cat /etc/understudy/cluster-ssl/ca.key 2>&1 || true", "Permission denied"},
		"the operator's token, by a daemon":     {"sudo runuser -u understudy -- cat /etc/understudy/operator.token 2>&1 || true", "Permission denied"},
		"a daemon by hand, as the wrong user":   {"sudo runuser -u nobody -- /usr/lib/understudy/handler-runner 2>&1 || true", "permission denied"},
	} {
		if out := h.script(host, c.command); !strings.Contains(out, c.says) {
			h.t.Errorf("%s: %q does not say %q", what, out, c.says)
		}
	}
	if out := h.script("alpha", "sudo journalctl --unit understudy-handler-runner EVENT=promoted --output json"); !strings.Contains(out, `"EPOCH":"1"`) || !strings.Contains(out, `"NODE":"alpha"`) {
		h.t.Errorf("the journal's fields do not tell of the promotion: %s", out)
	}
}

// allGoDown takes all hosts down, two in order and one by a power cut.
func (h *story) allGoDown() {
	h.t.Helper()
	before := h.healthy()
	ctx := h.t.Context()
	s := before.Standbys()
	for _, err := range []error{h.ByName[s[0]].PowerOff(ctx), h.ByName[before.Active].PowerCut(ctx), h.ByName[s[1]].PowerOff(ctx)} {
		must(h.t, err)
	}
	for _, name := range docs.Members {
		must(h.t, h.Boot(ctx, name))
	}
	h.units(h.healthy())
}

// units checks what systemd says of the application's units, and that each database
// runs as the drop-in says.
func (h *story) units(s rig.Status) {
	h.t.Helper()
	for _, n := range s.Nodes {
		worker := "inactive"
		if n.Name == s.Active {
			worker = "active"
		}
		h.await("the units of "+n.Name+" are as they should be", func() error {
			got, err := h.Script(h.t.Context(), n.Name, "systemctl is-active postgresql@15-main notes-web notes-worker || true; systemctl show --property=Type --value postgresql@15-main")
			if want := "active\nactive\n" + worker + "\nexec\n"; err == nil && got != want {
				err = fmt.Errorf("%q, want %q", got, want)
			}
			return err
		})
	}
}

// apart removes the standbys, then takes the last host's cluster apart, and purges the
// package. Nothing is left but the database, with Debian's configuration.
func (h *story) apart() {
	h.t.Helper()
	h.t.Log(h.script("alpha", "sudo understudy cluster nodes remove beta; sudo understudy cluster teardown --yes"))
	h.script("alpha", `cd /
until sudo -u postgres psql --quiet --command='select 1' >/dev/null 2>&1; do sleep 0.1; done
test "$(sudo -u postgres psql --no-align --tuples-only --command='select what from before_understudy')" = kept
! sudo grep --recursive --quiet understudy /etc/postgresql
sudo DEBIAN_FRONTEND=noninteractive apt-get purge --yes understudy
! id --name --groups nobody | grep --quiet understudy
test ! -e /etc/understudy
sudo -u postgres psql --quiet --command='insert into before_understudy values (1)'`)
}
