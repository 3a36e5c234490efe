package docs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/dev/rig"
)

// members are the hosts of operations.md.
var members = []string{"alpha", "beta", "gamma"}

// The commands for hosts are run as they stand, from git clone on, on whole Debian
// machines with systemd, by a user with sudo.
func TestMachines(t *testing.T) {
	t.Parallel()
	h := newHosts(t)
	if h == nil {
		return
	}
	fresh := h.add("fresh", 9)
	h.run(forHosts(t, "../README.md"))
	if err := fresh.PowerCut(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, name := range members {
		h.add(name, i+1)
	}
	all := forHosts(t, "operations.md")
	start := slices.IndexFunc(all, func(b block) bool { return strings.Contains(b.text, "cluster start") })
	remove := slices.IndexFunc(all, func(b block) bool { return strings.Contains(b.text, "nodes remove") })
	if start < 0 || remove < start {
		t.Fatal("operations.md does not start a cluster and then remove a node")
	}
	h.run(all[:start])
	h.application()
	h.run(all[start:remove])
	h.leastPrivilege("beta")
	h.databaseDies()
	h.powerCut()
	h.allGoDown()
	if h.healthy().Active != "alpha" { // as operations.md has it from here on
		h.script("beta", "sudo understudy cluster set-active alpha")
	}
	h.run(all[remove:])
	if h.ran < 15 {
		t.Errorf("only %d blocks were run", h.ran)
	}
}

// forHosts are the blocks of a document that are for these hosts, in their order.
// Those about delta, the runner, are run by TestHosts alone, on nodes of dev mode.
func forHosts(t *testing.T, file string) (list []block) {
	for _, b := range blocks(t, file) {
		_, again := b.attrs["again"]
		runner := b.attrs["on"] == "delta" || strings.Contains(b.text, "delta")
		if on := b.attrs["on"]; on != "" && on != "dev" && !again && !runner {
			list = append(list, b)
		} else if on == "" && b.lang == langHost && !runner {
			t.Errorf("%s: no host is named that runs it", b.where)
		}
	}
	return list
}

// application puts the notes application on all hosts, as an operator has his own,
// and the configuration that operations.md shows.
func (h *machines) application() {
	h.t.Helper()
	var conf string
	for _, b := range blocks(h.t, "operations.md") {
		if b.lang == "yaml" {
			conf = b.text
		}
	}
	for _, name := range members {
		h.script(name, `sudo adduser --quiet --system --group --no-create-home notes
sudo install -d -o notes -g notes /var/lib/notes /var/lib/notes/files
sudo cp `+repository+`/example/notes/units/*.service /etc/systemd/system/
sudo systemctl daemon-reload
sudo tee /etc/understudy/understudy.yaml >/dev/null <<'END'
`+conf+"END\n")
	}
	h.script("alpha", `sudo systemctl start postgresql@15-main.service
until sudo -u postgres psql --quiet --command='select 1' >/dev/null 2>&1; do sleep 0.1; done
sudo -u postgres psql --quiet --command='create role notes login' --command='grant create on database postgres to notes'`)
}

// databaseDies kills the active's database: another node takes over, and the
// journals tell of it.
func (h *machines) databaseDies() {
	before := h.healthy()
	h.script(before.Active, "sudo systemctl kill --kill-whom=main --signal=KILL postgresql@15-main.service")
	after := h.healthyAfter(before)
	if after.Active == before.Active || after.Epoch != before.Epoch+1 {
		h.t.Errorf("%s was active in epoch %d, and %s in %d", before.Active, before.Epoch, after.Active, after.Epoch)
	}
	h.units(after)
	for node, words := range map[string]string{before.Active: "fenced", after.Active: "promoting"} {
		said := h.script(node, "sudo journalctl -u understudy-handler-runner.service --since '10 min ago'")
		if !strings.Contains(said, words) {
			h.t.Errorf("the journal of %s does not tell that it was %s:\n%s", node, words, said)
		}
	}
}

// leastPrivilege checks who the daemons of a host are, and what is refused to them.
func (h *machines) leastPrivilege(host string) {
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

// powerCut takes the whole active host down and boots it again. No command is
// needed for it to come back.
func (h *machines) powerCut() {
	before := h.healthy()
	if err := h.byName[before.Active].PowerCut(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	h.await("another node is active", func() error {
		s, err := h.status(before.Standbys()[0])
		if err == nil && (s.Active == "" || s.Epoch <= before.Epoch) {
			err = fmt.Errorf("%q is active in epoch %d", s.Active, s.Epoch)
		}
		return err
	})
	h.boot(before.Active)
	h.units(h.healthyAfter(before))
}

// allGoDown takes all hosts down, two in order and one by a power cut.
func (h *machines) allGoDown() {
	before := h.healthy()
	ctx := h.t.Context()
	s := before.Standbys()
	for _, err := range []error{h.byName[s[0]].PowerOff(ctx), h.byName[before.Active].PowerCut(ctx), h.byName[s[1]].PowerOff(ctx)} {
		if err != nil {
			h.t.Fatal(err)
		}
	}
	for _, name := range members {
		h.boot(name)
	}
	h.units(h.healthy())
}

// units checks what systemd says of the manager's units, and that each database
// runs as the drop-in says.
func (h *machines) units(s rig.Status) {
	h.t.Helper()
	for _, n := range s.Nodes {
		worker := "inactive"
		if n.Name == s.Active {
			worker = "active"
		}
		h.await("the units of "+n.Name+" are as they should be", func() error {
			got := h.script(n.Name, "systemctl is-active postgresql@15-main notes-web notes-worker || true; systemctl show --property=Type --value postgresql@15-main")
			if want := "active\nactive\n" + worker + "\nexec\n"; got != want {
				return fmt.Errorf("%q, want %q", got, want)
			}
			return nil
		})
	}
}

// healthy waits until the cluster is as good as new.
func (h *machines) healthy() rig.Status { return h.healthyAfter(rig.Status{}) }

// healthyAfter is healthy in a later epoch.
func (h *machines) healthyAfter(before rig.Status) (s rig.Status) {
	h.t.Helper()
	h.await("the cluster is healthy", func() (err error) {
		if s, err = h.status(members[0]); err != nil {
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
	return s
}

// status asks a host for the cluster's.
func (h *machines) status(host string) (s rig.Status, err error) {
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	out, err := h.byName[host].Run(ctx, "root", "bash", "-c", "understudy cluster status --json 2>/dev/null")
	if out == "" {
		return s, errors.Join(errors.New("no status"), err)
	}
	return s, json.Unmarshal([]byte(out), &s)
}
