package handlerrunner

import (
	"os"
	"path/filepath"
	"slices"
	"time"
)

// fault is something bad that happens to a host, or to the cluster. It runs under
// the world's lock. It is over after some time, if it is of that kind.
type fault struct {
	name   string
	weight int
	begin  func(s *simulation, h *host, d *dice) (end func())
}

func faults() []fault {
	return []fault{
		{"power", 12, func(s *simulation, h *host, _ *dice) func() { s.cutPower(h); return func() { s.powerOn(h) } }},
		{"handler killed", 8, func(s *simulation, h *host, _ *dice) func() { s.kill(h); return func() { s.powerOn(h) } }},
		{"PostgreSQL killed", 8, func(s *simulation, h *host, _ *dice) func() { h.pg.stop(false); return nil }},
		{"freeze", 12, func(s *simulation, h *host, _ *dice) func() { return s.freeze(h) }},
		{"handler freezes", 8, func(s *simulation, h *host, _ *dice) func() { return s.nap(h) }},
		{"cut to one", 8, func(s *simulation, h *host, d *dice) func() {
			return s.cut(link{h.name, s.names[d.below(len(s.names))]})
		}},
		{"cut between two", 5, func(s *simulation, h *host, d *dice) func() {
			other := s.names[d.below(len(s.names))]
			return s.cut(link{h.name, other}, link{other, h.name})
		}},
		{"isolated", 8, func(s *simulation, h *host, _ *dice) func() { return s.isolate(h.name, true, true) }},
		{"sends nothing", 4, func(s *simulation, h *host, _ *dice) func() { return s.isolate(h.name, true, false) }},
		{"hears nothing", 4, func(s *simulation, h *host, _ *dice) func() { return s.isolate(h.name, false, true) }},
		{"cut from the registry", 8, func(s *simulation, h *host, _ *dice) func() {
			return s.cut(link{h.name, consul}, link{consul, h.name})
		}},
		{"replies of the registry are lost", 4, func(s *simulation, h *host, _ *dice) func() { return s.cut(link{consul, h.name}) }},
		{"bad network", 8, func(s *simulation, _ *host, d *dice) func() {
			s.loss += 0.2
			return func() { s.loss = max(0, s.loss-0.2) }
		}},
		{"registry down", 6, func(s *simulation, _ *host, _ *dice) func() { s.raft.stops++; return func() { s.raft.stops-- } }},
		{"session dropped", 5, func(s *simulation, _ *host, _ *dice) func() { s.reg.drop(s.reg.view.Leader.Session); return nil }},
		{"a failed check is told late", 3, func(s *simulation, h *host, _ *dice) func() { s.reg.tellLate(h); return nil }},
		{"checks expire", 4, func(_ *simulation, h *host, _ *dice) func() { // the agent stood still
			h.expired = true
			return func() { h.expired = false }
		}},
		{"unit broken", 3, func(s *simulation, h *host, _ *dice) func() { return s.breakUnit(h, alwaysUnit) }},
		{"PostgreSQL does not stop", 5, func(s *simulation, h *host, _ *dice) func() { return s.breakUnit(h, pgUnit) }},
		{"slow disk", 5, func(s *simulation, h *host, _ *dice) func() {
			s.slow[h.name] = true
			return func() { s.slow[h.name] = false }
		}},
		{"state cannot be written", 4, func(s *simulation, h *host, _ *dice) func() { return s.refuseState(h) }},
		{"promotion fails", 4, func(s *simulation, h *host, d *dice) func() { h.pg.failPromotes += 1 + d.below(2); return nil }},
		{"rewind fails", 3, func(s *simulation, h *host, _ *dice) func() { h.pg.failRewinds++; return nil }},
		{"clone fails", 3, func(s *simulation, h *host, _ *dice) func() { h.pg.failClones++; return nil }},
		{"clock jumps", 3, func(s *simulation, h *host, _ *dice) func() { // what is dated is too old, or from the future
			s.blind[h.name] = true
			return func() { s.blind[h.name] = false }
		}},
		{"one standby is away, the others lag", 3, func(s *simulation, h *host, _ *dice) func() { return s.dwindle(h) }},
		{"handler freezes, another hears nothing of it", 3, func(s *simulation, h *host, d *dice) func() {
			other := s.names[d.below(len(s.names))]
			wake, heal := s.nap(h), s.cut(link{other, consul}, link{consul, other})
			return func() {
				if wake != nil {
					wake()
				}
				heal()
			}
		}},
		{"parted", 14, func(s *simulation, _ *host, d *dice) func() { return s.part(d) }},
		{"clients are idle", 4, func(s *simulation, h *host, _ *dice) func() { h.idle = true; return func() { h.idle = false } }},
		{"watcher killed", 4, func(s *simulation, h *host, _ *dice) func() { return s.killWatcher(h) }},
		{"disk full", 4, func(s *simulation, h *host, _ *dice) func() {
			h.pg.disk = "is full: 3 MB are free"
			return func() { h.pg.disk = "" }
		}},
		{"export fails", 3, func(s *simulation, h *host, _ *dice) func() { h.pg.failExports++; return nil }},
		{"paused", 5, func(s *simulation, _ *host, _ *dice) func() { return s.pause() }},
		{"shut down in order", 5, func(s *simulation, h *host, _ *dice) func() { return s.shutDown(h) }},
		{"hand-over", 8, func(s *simulation, _ *host, d *dice) func() { s.handOver(d); return nil }},
		{"option", 4, func(s *simulation, h *host, d *dice) func() { return s.setOption(h, d) }},
		{"removed", 2, func(s *simulation, h *host, _ *dice) func() { s.remove(h); return nil }},
		{"added", 2, func(s *simulation, _ *host, _ *dice) func() { s.addOne(); return nil }},
	}
}

// moments are the calls at which a fault may lie in wait.
var moments = []string{
	"SetNextMaster", "Acquire", "Bind", "SetSync", "Update", "Renew", "Release", "View", "watch",
	"Slots", "SetQuorum", "Gate", "Promote", "Checkpoint", "PG.Detach", "Follow", "History", "Final", "Observe",
	"Rewind", "rewinding", "cloning", "Start " + pgUnit, "Stop " + pgUnit, "Kill " + pgUnit,
	"Detach a", "Detach b", "Detach c", "Report a", "Report b", "Vouch b", "Vouch c",
	"journal lock", "journal promoted", "journal writable", "journal elected", "journal state", "journal handover",
}

// partMoments are those of a part that is cut off, and of what comes after.
var partMoments = []string{
	"Rally a", "Rally b", "Rally c", "SkipTimelines", "Keep", "journal minority", "Claim a", "Claim b", "LastCommit", "LastWrite b", "LastWrite c",
	"journal heal", "Export", "journal rewind", "journal clone", "journal failback",
}

// ambush is a fault that strikes when a handler comes to a certain call.
type ambush struct {
	moment string
	on     string // host; empty: any
	fault  fault
	lasts  time.Duration
}

func pick(d *dice) fault {
	sum := 0
	for _, f := range faults() {
		sum += f.weight
	}
	n := d.below(sum)
	for _, f := range faults() {
		if n -= f.weight; n < 0 {
			return f
		}
	}
	return fault{}
}

func faultOf(name string) fault {
	return faults()[slices.IndexFunc(faults(), func(f fault) bool { return f.name == name })]
}

// nemesis brings on one fault after the other, and lays ambushes for more.
func (s *simulation) nemesis() {
	d := diceOf(s.seed, "nemesis", 0)
	_ = sleep(s.ctx, d.upTo(3*time.Second))
	over := time.Now()
	if d.chance(0.5) { // a partition that lasts; everything else happens in it
		s.mu.Lock()
		lasts := s.reg.view.Options("").Duration("minority_after") + d.between(2*time.Second, 14*time.Second)
		s.begin(faultOf("parted"), s.hosts[s.names[0]], lasts, d)
		over = time.Now().Add(lasts)
		s.mu.Unlock()
		_ = sleep(s.ctx, d.upTo(lasts))
	}
	defer func() {
		if d.chance(0.7) {
			_ = sleep(s.ctx, time.Until(over)+d.upTo(time.Second))
		}
	}()
	for range 2 + d.below(8) {
		s.mu.Lock()
		lasts := d.between(20*ms, []time.Duration{200 * ms, time.Second, 4 * time.Second, 7 * time.Second}[d.below(4)])
		f, on := pick(d), s.hosts[s.names[d.below(len(s.names))]]
		if active := s.hosts[s.reg.view.NextMaster.Node]; d.chance(0.4) && active != nil {
			on = active
		}
		if f.name == "parted" || f.name == "clients are idle" {
			lasts = d.between(time.Second, 16*time.Second)
		}
		if d.chance(0.5) {
			at := moments
			if d.chance(0.3) {
				at = partMoments
			}
			a := ambush{[]string{"before ", "after "}[d.below(2)] + at[d.below(len(at))], "", f, lasts}
			s.ambushes = append(s.ambushes, a)
			s.tell("", "ambush: %s %s", f.name, a.moment)
		} else {
			s.begin(f, on, lasts, d)
		}
		s.mu.Unlock()
		if sleep(s.ctx, d.upTo([]time.Duration{100 * ms, time.Second, 3 * time.Second}[d.below(3)])) != nil {
			return
		}
	}
}

// begin starts a fault and sees to its end. The world is locked.
func (s *simulation) begin(f fault, on *host, lasts time.Duration, d *dice) {
	if s.calm {
		return
	}
	s.tell(on.name, "FAULT: %s, for %s", f.name, lasts.Round(ms))
	s.count("fault: " + f.name)
	end := f.begin(s, on, d)
	if end == nil {
		return
	}
	s.after(lasts, func() {
		s.tell(on.name, "over: %s", f.name)
		end()
	})
}

// strike springs the ambush that waits for a call, if there is one.
func (s *simulation) strike(p *proc, moment string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ambushes) == 0 || p.gone || s.calm {
		return
	}
	i := slices.IndexFunc(s.ambushes, func(a ambush) bool {
		return a.moment == moment && (a.on == "" || a.on == p.name)
	})
	if i < 0 {
		return
	}
	a := s.ambushes[i]
	s.ambushes = slices.Delete(s.ambushes, i, i+1)
	s.tell(p.name, "%s:", moment)
	s.begin(a.fault, p.host, a.lasts, diceOf(s.seed, moment, uint64(i)))
}

// relax ends all faults and brings everything back that is a member.
func (s *simulation) relax() {
	s.mu.Lock()
	s.calm, s.ambushes = true, nil
	s.tell("", "the faults are over")
	for id := 1; id <= s.nth; id++ {
		if end := s.ends[id]; end != nil {
			delete(s.ends, id)
			end()
		}
	}
	s.loss = 0
	for _, name := range s.names {
		pg := s.hosts[name].pg
		pg.failPromotes, pg.failRewinds, pg.failClones, pg.failExports = 0, 0, 0, 0
		s.powerOn(s.hosts[name])
	}
	s.reg.touch()
	s.mu.Unlock()
}

func (s *simulation) cutPower(h *host) {
	if h.dead {
		return
	}
	s.kill(h)
	h.dead = true
	if h.thaw != nil {
		close(h.thaw)
		h.thaw = nil
	}
	h.pg.cutTo(h.pg.durable())
	h.pg.stop(false)
	clear(h.units.up)
	s.whole()
}

// powerOn starts what does not run on a host.
func (s *simulation) powerOn(h *host) {
	if h.handler == nil && s.ctx.Err() == nil {
		s.bootLocked(h)
	}
}

// dwindle makes the sync set shrink to standbys that have not caught up, and ends
// the active just when that is published.
func (s *simulation) dwindle(away *host) func() {
	active := s.reg.view.Leader.Node
	if away.name == active || s.hosts[active] == nil {
		return nil
	}
	heal := s.isolate(away.name, true, true)
	for _, name := range s.names {
		s.lags[name] = name != active && name != away.name
	}
	s.ambushes = append(s.ambushes, ambush{"after SetSync", active, faultOf("power"), 3 * time.Second})
	return func() {
		heal()
		clear(s.lags)
	}
}

func (s *simulation) freeze(h *host) func() {
	if h.dead || h.thaw != nil {
		return nil
	}
	thaw := make(chan struct{})
	h.thaw = thaw
	return func() {
		if h.thaw == thaw {
			close(thaw)
			h.thaw = nil
		}
	}
}

func (s *simulation) nap(h *host) func() {
	if s.naps[h.name] != nil {
		return nil
	}
	thaw := make(chan struct{})
	s.naps[h.name] = thaw
	return func() { close(thaw); delete(s.naps, h.name) }
}

func (s *simulation) cut(links ...link) func() {
	for _, l := range links {
		if l.from != l.to {
			s.cuts[l]++
		}
	}
	return func() {
		for _, l := range links {
			if l.from != l.to {
				s.cuts[l]--
			}
		}
	}
}

func (s *simulation) isolate(name string, out, in bool) func() {
	var links []link
	for _, other := range append(slices.Clone(s.names), consul, outside) {
		if out {
			links = append(links, link{name, other})
		}
		if in {
			links = append(links, link{other, name})
		}
	}
	return s.cut(links...)
}

// part cuts a few hosts off from the others, which keep the registry where it is
// not on the hosts. Sometimes nobody writes on one side.
func (s *simulation) part(d *dice) func() {
	rest := slices.Clone(s.names)
	var part []string
	for range 1 + d.below(max(1, len(rest)/2)) {
		i := d.below(len(rest))
		part, rest = append(part, rest[i]), slices.Delete(rest, i, i+1)
	}
	var links []link
	for _, name := range part {
		for _, other := range append(slices.Clone(rest), consul) {
			if other != consul || !s.raft.hosted {
				links = append(links, link{name, other}, link{other, name})
			}
		}
	}
	idle := [][]string{rest, rest, part, nil, nil, nil}[d.below(6)]
	for _, name := range idle {
		s.hosts[name].idle = true
	}
	s.tell("", "%v is cut off from %v; idle: %v", part, rest, idle)
	heal, quiet := s.cut(links...), d.upTo(8*time.Second)
	return func() {
		heal()
		s.after(quiet, func() {
			for _, name := range idle {
				s.hosts[name].idle = false
			}
		})
	}
}

// after does something later, or when the faults are over. The world is locked.
func (s *simulation) after(wait time.Duration, do func()) {
	if s.calm {
		do()
		return
	}
	s.nth++
	id := s.nth
	s.ends[id] = do
	s.running.Go(func() {
		_ = sleep(s.ctx, wait)
		s.mu.Lock()
		defer s.mu.Unlock()
		if do := s.ends[id]; do != nil {
			delete(s.ends, id)
			do()
			s.reg.touch()
		}
	})
}

func (s *simulation) breakUnit(h *host, unit string) func() {
	if h.units.stuck[unit] {
		return nil
	}
	h.units.stuck[unit] = true
	if unit != pgUnit {
		h.units.up[unit] = false
	}
	return func() { h.units.stuck[unit] = false }
}

// refuseState puts a file where the folder of the state files should be.
func (s *simulation) refuseState(h *host) func() {
	dir := filepath.Join(s.dir, h.name)
	if os.Rename(dir, dir+".away") != nil {
		return nil
	}
	_ = os.WriteFile(dir, nil, 0o600)
	s.refused[h.name] = true
	return func() {
		s.refused[h.name] = false
		if err := os.Remove(dir); err != nil {
			s.violate("%v", err)
		}
		if err := os.Rename(dir+".away", dir); err != nil {
			s.violate("%v", err)
		}
		if !h.dead {
			s.powerOn(h)
		}
	}
}
