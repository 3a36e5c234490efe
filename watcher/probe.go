package watcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// probe starts a round of probes twice a second. One that hangs holds up
// nothing: it is not started again until it has ended.
func (w *watcher) probe(ctx context.Context) {
	for ctx.Err() == nil {
		w.round(ctx)
		pause(ctx, nil, jitter(w.stretch(probeEvery)))
	}
}

func (w *watcher) round(ctx context.Context) {
	w.mu.Lock()
	members, alone := w.members, w.alone()
	limit := members.Options.Stretch(probeLimit)
	w.mu.Unlock()

	w.start(ctx, "raft", limit, w.askRaft)
	for _, n := range members.Managers {
		if n.Name != w.Node {
			w.start(ctx, "peer "+n.Name, limit, func(ctx context.Context) { w.askPeer(ctx, n) })
		}
	}
	hosts := w.outsideHosts(members.Options)
	if !alone {
		hosts = nil // nobody outside is bothered without need
		w.forgetOutside()
	}
	w.rounds++
	for _, host := range hosts {
		// Pings overlap, so that silence is known soon.
		what := fmt.Sprintf("outside %s %d", host, w.rounds%lostAfter)
		w.start(ctx, what, limit, func(ctx context.Context) { w.askOutside(ctx, host) })
	}
	if to := w.move(time.Now()); to != "" {
		w.start(ctx, "transfer", transferLimit, func(ctx context.Context) { w.transfer(ctx, to) })
	}
}

// alone says that those outside are to be asked: this node is not known to be in
// the majority, or most managers do not answer it and only Consul may still speak
// for it. The caller holds w.mu.
func (w *watcher) alone() bool {
	j := w.verdict
	return j.Verdict != cluster.VerdictUnknown && (j.Verdict != cluster.Majority || len(j.Missing) >= max(len(j.Reached), 1))
}

// start runs one call, unless the same one is still under way.
func (w *watcher) start(ctx context.Context, what string, limit time.Duration, call func(context.Context)) {
	w.mu.Lock()
	started := w.inFlight[what]
	w.inFlight[what] = true
	w.mu.Unlock()
	if started {
		return
	}
	w.busy.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		call(ctx)
		w.mu.Lock()
		delete(w.inFlight, what)
		w.mu.Unlock()
		select {
		case w.wake <- struct{}{}:
		default:
		}
	})
}

func (w *watcher) askRaft(ctx context.Context) {
	heard, known, err := w.Raft.LeaderHeard(ctx)
	seen := raftSeen{has: cluster.TriOf(known), at: time.Now(), heard: heard}
	if err != nil {
		seen.has = cluster.Unknown
		w.Logger.Debug("the local Consul agent cannot be asked for a leader", "error", err)
	} else if known && w.isActive() {
		if seen.node, _, err = w.Raft.Leader(ctx); err != nil {
			w.Logger.Debug("who leads Consul is not known", "error", err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if seen.has != cluster.Yes {
		seen.heard = w.raft.heard
	}
	seen.from = w.raft.from
	if seen.node != w.raft.node || seen.has != w.raft.has {
		seen.from = seen.at
	}
	w.raft = seen
}

func (w *watcher) askPeer(ctx context.Context, n cluster.Node) {
	err := w.Prober.Ping(ctx, n)
	if errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	w.mu.Lock()
	before := w.contacts[n.Name]
	contact := before.Next(time.Now(), resultOf(err))
	w.contacts[n.Name] = contact
	w.mu.Unlock()
	if before.Result != contact.Result {
		w.Logger.Info("manager probed", "peer", n.Name, "address", n.Address, "result", contact.Result.String(), "error", err)
	}
}

// resultOf sorts the outcome of a probe. What was reset, spoke no proper TLS or
// answered with an error proves neither that the manager works nor that the way
// to it is cut.
func resultOf(err error) cluster.ProbeResult {
	var timeout net.Error
	switch {
	case err == nil:
		return cluster.ProbeAnswered
	case errors.Is(err, syscall.ECONNREFUSED):
		return cluster.ProbeRefused
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded), noRoute(err):
		return cluster.ProbeSilent
	}
	return cluster.ProbeUnknown
}

func noRoute(err error) bool {
	for _, e := range []error{syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.ENETDOWN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// outsideSeen is what pings of one host outside the cluster have shown.
type outsideSeen struct {
	reached cluster.Tri
	at      time.Time
	misses  int // in a row
	pings   int // that have ended
}

// next takes in one ping. Only several without an answer in a row say No.
func (s outsideSeen) next(now time.Time, reached cluster.Tri) outsideSeen {
	seen := outsideSeen{reached: reached, at: now, pings: s.pings + 1}
	if reached == cluster.No {
		if seen.misses = s.misses + 1; seen.misses < lostAfter {
			seen.reached = cluster.Unknown
		}
	}
	return seen
}

func (w *watcher) askOutside(ctx context.Context, host netip.Addr) {
	reached := w.Pinger.Reach(ctx, host)
	if errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.outside[host] = w.outside[host].next(time.Now(), reached)
}

func (w *watcher) forgetOutside() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.outside)
}

// outsideHosts lists whom to ping: the default gateway and the ping targets. A
// gateway whose route has gone is still one that must be reached.
func (w *watcher) outsideHosts(o cluster.Options) []netip.Addr {
	gateway, ok := w.Gateway()
	w.mu.Lock()
	defer w.mu.Unlock()
	if ok {
		w.gateway = gateway
	}
	return points(w.gateway, o)
}

func points(gateway netip.Addr, o cluster.Options) []netip.Addr {
	var hosts []netip.Addr
	if gateway.IsValid() {
		hosts = append(hosts, gateway)
	}
	for _, target := range o.List("ping_targets") {
		if a, err := netip.ParseAddr(target); err == nil && a != gateway {
			hosts = append(hosts, a)
		}
	}
	return hosts
}

// outsidePoints is what is known of them, and whether one was not asked often
// enough to tell. The caller holds w.mu.
func (w *watcher) outsidePoints(now time.Time, fresh time.Duration) (out []cluster.Outside, asking bool) {
	for _, host := range points(w.gateway, w.members.Options) {
		point := cluster.Outside{Name: host.String()}
		if host == w.gateway {
			point.Name = "gateway " + point.Name
		}
		seen := w.outside[host]
		if now.Sub(seen.at) <= fresh {
			point.Reached = seen.reached
		}
		asking = asking || seen.pings < lostAfter
		out = append(out, point)
	}
	return out, asking
}
