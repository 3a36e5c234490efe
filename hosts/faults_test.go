package hosts

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/rig"
	"github.com/understudy-ha/understudy/docs"
	"github.com/understudy-ha/understudy/lab"
)

// faults happen to the hosts while a client writes through the load balancer. What it
// saw is reported; no write that it was told of is lost.
func (h *story) faults() {
	ctx, cancel := context.WithCancel(h.t.Context())
	defer cancel()
	must(h.t, h.Balance(ctx))
	w, err := probe.Open(ctx, probe.Options{
		Targets: []probe.Target{h.Client()}, Dial: h.Lab.Dial, Name: "client",
		Every: 10 * time.Millisecond, Connect: time.Second, Pause: 20 * time.Millisecond,
	})
	must(h.t, err)
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	r := &figures{h: h, w: w}

	for range 3 {
		r.outage("PostgreSQL crashes", h.databaseDies)
	}
	for range 3 {
		r.outage("hand-over", func(s rig.Status) { h.script(s.Active, "sudo understudy cluster set-active "+s.Standbys()[0]) })
	}
	for range 2 {
		r.outage("power cut", h.powerCut(r))
	}
	r.outage("power cut of all hosts", h.blackout)
	r.outage("reboot of the active", h.reboot(r))
	r.outage("cut off", h.cutOff("input", "output"))
	r.outage("hears nobody", h.cutOff("input"))
	r.outage("is not heard", h.cutOff("output"))
	r.outage("upgrade of all hosts", h.upgrade)
	r.quiet("new certificates", func() { h.script("beta", "sudo understudy certs rotate") })

	cancel()
	must(h.t, <-ended)
	h.nothingLost(w.Journal())
	r.rest()
	r.write()
}

// databaseDies kills the active's database: another node takes over, and the journals
// tell of it.
func (h *story) databaseDies(before rig.Status) {
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

// powerCut takes the whole active host down and boots it again. No command is needed
// for it to come back.
func (h *story) powerCut(r *figures) func(rig.Status) {
	return func(before rig.Status) {
		must(h.t, h.ByName[before.Active].PowerCut(h.t.Context()))
		h.takenOver(before)
		h.back(r, before)
	}
}

// reboot: a clean shutdown of the active hands over first.
func (h *story) reboot(r *figures) func(rig.Status) {
	return func(before rig.Status) {
		must(h.t, h.ByName[before.Active].PowerOff(h.t.Context()))
		h.takenOver(before)
		said := h.script(before.Standbys()[0], "sudo understudy cluster events --json --since 2m")
		if !strings.Contains(said, `"handover"`) {
			h.t.Errorf("the shutdown was no hand-over: %s", said)
		}
		h.back(r, before)
	}
}

// blackout cuts the power of all hosts while the client writes.
func (h *story) blackout(rig.Status) {
	for _, name := range docs.Members {
		must(h.t, h.ByName[name].PowerCut(h.t.Context()))
	}
	for _, name := range docs.Members {
		must(h.t, h.Boot(h.t.Context(), name))
	}
	h.units(h.healthy())
}

// takenOver waits until another node is active.
func (h *story) takenOver(before rig.Status) {
	h.t.Helper()
	h.await("another node is active", func() error {
		s, err := h.Status(h.t.Context(), before.Standbys()[0])
		if err == nil && (s.Active == "" || s.Active == before.Active || s.Epoch <= before.Epoch) {
			err = fmt.Errorf("%q is active in epoch %d", s.Active, s.Epoch)
		}
		return err
	})
}

// back switches the former active on. It was active last, so it must not boot to take
// writes, and rejoins by itself.
func (h *story) back(r *figures, before rig.Status) {
	h.t.Helper()
	began := time.Now()
	must(h.t, h.Boot(h.t.Context(), before.Active))
	after := h.healthyAfter(before)
	r.add("power-on to rejoined", time.Since(began))
	if after.Active == before.Active {
		h.t.Errorf("%s is active again", before.Active)
	}
	// PostgreSQL says "read-only connections" as a standby.
	if said := h.script(before.Active, "sudo journalctl --boot --unit postgresql@15-main.service"); !strings.Contains(said, "ready to accept read-only connections") || strings.Contains(said, "ready to accept connections") {
		h.t.Errorf("%s has not booted as a standby alone:\n%s", before.Active, said)
	}
	h.units(after)
}

// cutOff drops what the active host hears from the others, or what they hear of it,
// until another one is active.
func (h *story) cutOff(chains ...string) func(rig.Status) {
	return func(before rig.Status) {
		m := h.ByName[before.Active]
		rules := "table inet cut {\n"
		for _, chain := range chains {
			// The load balancer is cut off from it, too: it could not tell.
			rules += "chain " + chain + " { type filter hook " + chain + " priority 0; "
			if chain == "input" {
				rules += "iifname host0 drop; }\n"
			} else {
				rules += "oifname host0 drop; }\n"
			}
		}
		file := filepath.Join(h.Lab.Dir(), "cut.nft")
		must(h.t, writeText(file, rules+"}\n"))
		must(h.t, m.Network(h.t.Context(), "nft", "--file", file))
		h.takenOver(before)
		must(h.t, m.Network(h.t.Context(), "nft", "delete", "table", "inet", "cut"))
		h.healthyAfter(before)
	}
}

// next is the version that the hosts are upgraded to.
const next = "99.0.0"

// upgrade installs another version as operations.md says: one host after the other,
// standbys first, then a hand-over, and the former active last. Meanwhile the versions
// differ, and everything goes on.
func (h *story) upgrade(before rig.Status) {
	home := "/home/" + lab.Admin
	const maker = "alpha"
	h.script(maker, "cd understudy && make package VERSION="+next+" DIST="+home+"/next")
	deb := h.script(maker, "basename next/understudy_*.deb")
	deb = strings.TrimSpace(deb)
	epoch := before.Epoch
	install := func(name string) {
		if name != maker {
			must(h.t, copyFile(h.ByName[maker].Path(home+"/next/"+deb), h.ByName[name].Path(home+"/next/"+deb)))
		}
		h.t.Log(h.script(name, "sudo apt-get install --yes ./next/"+deb+" 2>&1"))
		if s := h.healthy(); s.Epoch != epoch {
			h.t.Errorf("the upgrade of %s was a failover: epoch %d, not %d", name, s.Epoch, epoch)
		}
	}
	for _, name := range before.Standbys() {
		install(name)
	}
	mixed := h.script(maker, "sudo understudy cluster nodes list")
	h.t.Log(mixed)
	if strings.Count(mixed, next) != 2 {
		h.t.Errorf("the list of nodes does not tell who was upgraded:\n%s", mixed)
	}
	h.script(before.Active, "sudo understudy cluster set-active "+before.Standbys()[0])
	epoch = h.healthyAfter(before).Epoch
	install(before.Active)
	if all := h.script(maker, "sudo understudy cluster nodes list"); strings.Count(all, next) != 3 {
		h.t.Errorf("not all were upgraded:\n%s", all)
	}
}

// nothingLost looks for every acknowledged row on every member.
func (h *story) nothingLost(j probe.Journal) {
	h.t.Helper()
	s := h.healthy()
	for _, name := range docs.Members {
		out := h.script(name, "cd /; sudo -u postgres psql --quiet --no-align --tuples-only --command='set search_path to notes, public' --command=\"select id from probe where writer = '"+j.Writer+"'\"")
		found := map[string]bool{}
		for id := range strings.Lines(out) {
			found[strings.TrimSpace(id)] = true
		}
		missing := slices.DeleteFunc(slices.Clone(j.Acks), func(a probe.Ack) bool { return found[fmt.Sprint(a.ID)] })
		if len(missing) > 0 {
			h.t.Errorf("%s lacks %d of %d acknowledged writes, the first %+v", name, len(missing), len(j.Acks), missing[0])
		}
	}
	h.t.Logf("%d writes were acknowledged, %d are indeterminate; %s is active", len(j.Acks), len(j.Indeterminate), s.Active)
}
