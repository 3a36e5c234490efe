package handlerrunner

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

const (
	// answerWithin is how long an election waits for nodes that do not answer,
	// once those that have are enough.
	answerWithin = 300 * time.Millisecond
	askWithin    = 2 * time.Second
	retryAfter   = 200 * time.Millisecond
	// settleWithin is how long an election waits for a node that has served a
	// part of the cluster and has not stopped yet.
	settleWithin = 10 * time.Second
	// steadyAfter is how long a unit that has failed must run again.
	steadyAfter = 5 * time.Second
)

// Detach answers an election: it promises to take no WAL of an epoch before the
// given one, ends the reception of WAL, and tells how far this node has come.
// The election has seen the leader key free at the index seen, and can name
// nobody once that key has changed. While this node is active and its lease is
// valid it refuses, and while it stands by an active node other than by, which
// asks. A runner promises nothing.
func (h *Handler) Detach(ctx context.Context, by string, epoch cluster.Epoch, seen uint64) (cluster.Answer, error) {
	if h.Kind == cluster.Runner {
		return cluster.Answer{}, fmt.Errorf("detach %s: %w", h.Node, errNoDatabase)
	}
	h.moving.Lock()
	defer h.moving.Unlock()
	valid, held := h.tenure.valid(time.Now())
	switch side := h.ownSide(); {
	case side != nil && (valid || h.serves()):
		return h.unsettled(side), nil
	case valid:
		return cluster.Answer{}, fmt.Errorf("%s is active and holds the lease of epoch %d", h.Node, held)
	}
	if active := h.standsBy(); active != "" && active != by {
		return cluster.Answer{}, fmt.Errorf("%s stands by the active node, %s, which Consul did not hear", h.Node, active)
	}
	if follows := h.followedEpoch(); follows >= epoch {
		return cluster.Answer{}, fmt.Errorf("%s follows the active of epoch %d already", h.Node, follows)
	}
	// A call that was under way for long, behind a broken link, must not part a
	// node from the active that it is being mended from.
	if l := h.View().Leader; l.Epoch >= epoch {
		return cluster.Answer{}, fmt.Errorf("the election for epoch %d is over: %s has had the lock for epoch %d", epoch, l.Node, l.Epoch)
	}
	promise, err := h.promise(epoch, seen)
	if err != nil {
		return cluster.Answer{}, err
	}
	h.setUpstream(0)
	a, err := h.answer(ctx, promise)
	if side := h.ownSide(); err != nil && side != nil {
		h.Log.Info("no final position yet", "epoch", epoch, "error", err)
		return h.unsettled(side), nil
	}
	return a, err
}

// ownSide is the part that this node serves or has served, until it is open to
// the whole cluster or has given way; else nil.
func (h *Handler) ownSide() *cluster.Side {
	_, d, _ := h.snapshot()
	if d.Side == nil || d.Side.Leader != h.Node || d.Lost {
		return nil
	}
	return d.Side
}

// unsettled is the answer of a node that has no final position of its side yet.
func (h *Handler) unsettled(side *cluster.Side) cluster.Answer {
	return cluster.Answer{Node: h.Node, Side: side, Serving: true}
}

// promise writes down that no WAL of an epoch before the given one is taken, and
// returns the epoch that is promised now. The caller holds moving.
func (h *Handler) promise(epoch cluster.Epoch, seen uint64) (cluster.Epoch, error) {
	h.mu.Lock()
	before := h.durable
	h.durable.Promise = max(before.Promise, epoch)
	h.durable.PromiseAt = max(before.PromiseAt, seen)
	now, unkept := h.durable, h.unkept
	h.mu.Unlock()
	if now.Promise == before.Promise && now.PromiseAt == before.PromiseAt && !unkept {
		return now.Promise, nil
	}
	if err := h.keep(); err != nil {
		return 0, fmt.Errorf("keep the promise for epoch %d: %w", epoch, err)
	}
	return now.Promise, nil
}

// redeem takes back a promise whose election has come to nothing: the node that
// was named before it has taken the lock since, so it can name nobody any more.
// Without it a node would stay detached from an active that it could follow.
func (h *Handler) redeem() {
	h.moving.Lock()
	defer h.moving.Unlock()
	h.mu.Lock()
	v, d := h.view, h.durable
	void := v.Leader.Held && v.Leader.Epoch == v.NextMaster.Epoch && d.Promise > v.Leader.Epoch && v.LeaderIndex > d.PromiseAt
	if void {
		h.durable.Promise = v.Leader.Epoch
	}
	h.mu.Unlock()
	if void {
		h.Log.Info("promise is void: its election was forestalled", "promised", d.Promise, "epoch", v.Leader.Epoch)
		h.keep()
	}
}

// answer tells the final position. The caller holds moving and has promised.
func (h *Handler) answer(ctx context.Context, promise cluster.Epoch) (cluster.Answer, error) {
	_, d, db := h.snapshot()
	a := cluster.Answer{Node: h.Node, Epoch: promise, SystemID: db.SystemID, Seen: db.Seen, Files: h.Files().Complete, Side: d.Side}
	pos, err := h.Replication.Detach(ctx)
	if err != nil {
		return a, fmt.Errorf("detach for epoch %d: %w", promise, err)
	}
	a.Position = pos
	a.Line = d.line(pos.Timeline)
	if a.History, err = h.Replication.History(ctx, pos.Timeline); err != nil {
		return a, fmt.Errorf("detach for epoch %d: %w", promise, err)
	}
	complete, err := h.Directory.Complete(ctx)
	if err == nil {
		a.Complete = cluster.TriOf(complete)
	}
	a.Problem = h.problem(ctx)
	return a, nil
}

// problem tells why this node could not be active now, empty if it could.
func (h *Handler) problem(ctx context.Context) string {
	if p := h.hindrance(); p != "" {
		return p
	}
	return h.idle(ctx)
}

// idle tells which of the units that run on every node does not.
func (h *Handler) idle(ctx context.Context) string {
	for _, u := range h.AlwaysUnits {
		running, err := h.Units.Running(ctx, u)
		if err != nil {
			running = cluster.Unknown
		}
		if p := h.ails(u, running); p != "" {
			return p
		}
	}
	return ""
}

// ails tells what is wrong with a unit. One that is started again and again runs
// at times, which is nothing to rely on.
func (h *Handler) ails(unit string, running cluster.Tri) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case running != cluster.Yes:
		return fmt.Sprintf("its unit %s does not run", unit)
	case time.Since(h.faltered[unit]) < steadyAfter:
		return fmt.Sprintf("its unit %s has failed less than %s ago", unit, steadyAfter)
	}
	return ""
}

// hindrance is what other daemons have found that keeps this node from being active.
func (h *Handler) hindrance() string {
	if v := h.Verdict(); v.Verdict == cluster.Minority || v.Verdict == cluster.Isolated {
		return "it is cut off: " + v.Reason
	}
	if s := h.Storage(); s.Problem != "" {
		return "the disk of its database " + s.Problem
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.retiring {
		return "its host is going down"
	}
	return ""
}

// elect asks every manager to detach for the epoch after the vacant one and names
// the winner. Every standby does so at the same time; whoever writes first names
// the same node as the others would.
func (h *Handler) elect(ctx context.Context, vacant cluster.Epoch) error {
	began := time.Now()
	view, err := h.Store.View(ctx)
	if err != nil {
		return fmt.Errorf("election: %w", err)
	}
	if view.Leader.Held || view.NextMaster.Epoch != vacant {
		return nil // another was quicker; the watch brings it
	}
	b := cluster.Ballot{View: view, Epoch: h.nextEpoch(view), Avoid: cluster.Unconfirmed(view)}
	return h.ballot(ctx, b, began)
}

// nextEpoch is the epoch to give away: above the one in force, and not below
// what this node has promised already.
func (h *Handler) nextEpoch(view cluster.View) cluster.Epoch {
	_, d, _ := h.snapshot()
	return max(view.NextMaster.Epoch+1, d.Promise)
}

// ballot holds the election and writes its result. Answers that b has already
// are kept.
func (h *Handler) ballot(ctx context.Context, b cluster.Ballot, began time.Time) error {
	answers, silent := h.ask(b)
	b.Answers = h.await(append(b.Answers, answers...))
	h.weigh(ctx, b.View, b.Answers)
	out := cluster.Elect(b)
	asked := time.Since(began)
	if out.Winner == "" {
		for _, a := range b.Answers {
			if a.Epoch > b.Epoch {
				return fmt.Errorf("election for epoch %d: %s has promised epoch %d already", b.Epoch, a.Node, a.Epoch)
			}
		}
		if out.Borrower == h.Node {
			if err := h.borrow(b, out.Lender); err != nil {
				h.Log.Warn("WAL not borrowed", "from", out.Lender, "epoch", b.Epoch, "error", err)
			}
		}
		return fmt.Errorf("election for epoch %d: nobody is named: %s (%v)", b.Epoch, out.Reason, out.Passed)
	}
	next := cluster.Assignment{Node: out.Winner, Epoch: b.Epoch, Reason: out.Reason, By: h.Node, At: time.Now(), Above: cluster.Above(b), Past: b.Past(out.Winner)}
	ok, err := h.Store.SetNextMaster(ctx, b.View, next)
	if err != nil {
		return fmt.Errorf("name %s for epoch %d: %w", out.Winner, b.Epoch, err)
	}
	if ok {
		h.Log.Info("elected", "winner", out.Winner, "epoch", b.Epoch, "reason", out.Reason, "asked", asked, "took", time.Since(began))
		h.Journal.Write(cluster.EventElected, b.Epoch, fmt.Sprintf("%s is to be active: %s", out.Winner, out.Reason), cluster.Election{
			From: b.View.NextMaster.Node, Winner: out.Winner, Passed: out.Passed, Answers: b.Answers, Silent: silent,
			Detected: began, AskedMs: asked.Milliseconds(),
		})
	}
	return nil
}

// wasCutOff says that this node was in no majority a moment ago. Then a manager
// that is silent may have served the other part meanwhile, behind connections that
// the cut has stalled.
func (h *Handler) wasCutOff() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.durable.State == cluster.Standby && time.Since(h.cutOff) < settleWithin
}

// awaits says that the last election has heard of a node that may still serve a part.
func (h *Handler) awaits() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.awaited.IsZero() && time.Since(h.awaited) < settleWithin
}

// await returns the answers to go by: for a while also those of nodes that may
// still serve a part, which nobody is elected without.
func (h *Handler) await(answers []cluster.Answer) []cluster.Answer {
	settled := cluster.Settled(answers)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch now := time.Now(); {
	case len(settled) == len(answers):
		h.awaited = time.Time{}
	case h.awaited.IsZero():
		h.awaited = now
	case now.Sub(h.awaited) > settleWithin:
		return settled
	}
	return answers
}

// ask collects the answers of all managers that b lacks, and names those that
// gave none. It returns when all have answered or failed; or, once the answers are
// enough, when only the node that was active is missing, which is most likely dead
// and whose unacknowledged WAL nobody needs, or when answerWithin has passed. Who
// has not answered by then is still asked: if it is open, it learns so that it is
// not to be. A node that was cut off, or that has heard of one that may serve a
// part, hears all out, and counts whom it does not reach as one that may serve.
func (h *Handler) ask(b cluster.Ballot) (answers []cluster.Answer, silent []cluster.Passed) {
	var asked []string
	for _, name := range b.View.Managers() {
		if !slices.ContainsFunc(b.Answers, func(a cluster.Answer) bool { return a.Node == name }) {
			asked = append(asked, name)
		}
	}
	replies := make(chan reply, len(asked))
	for _, name := range asked {
		h.aside.Go(func() {
			ctx, cancel := context.WithTimeout(h.living, askWithin)
			defer cancel()
			a, err := h.askOne(ctx, b.View.Nodes[name], b)
			replies <- reply{a, name, err}
		})
	}
	cut := h.wasCutOff() || h.awaits()
	opened := b.View.NextMaster.Epoch <= b.View.Sync.Epoch
	patience := time.NewTimer(answerWithin)
	defer patience.Stop()
	missing := slices.Clone(asked)
	for late := false; len(missing) > 0; {
		select {
		case r := <-replies:
			missing = slices.DeleteFunc(missing, func(n string) bool { return n == r.from })
			if r.err != nil {
				silent = append(silent, cluster.Passed{Node: r.from, Reason: r.err.Error()})
			}
			switch {
			case r.err == nil:
				answers = append(answers, r.Answer)
			case cut:
				answers = append(answers, cluster.Answer{Node: r.from, Serving: true})
			}
		case <-patience.C:
			late = true
		}
		rest := b
		rest.Answers = slices.Concat(b.Answers, answers)
		late = late || opened && slices.Equal(missing, []string{b.View.NextMaster.Node})
		if late && !cut && cluster.Elect(rest).Winner != "" {
			break
		}
	}
	slices.SortFunc(answers, func(x, y cluster.Answer) int { return strings.Compare(x.Node, y.Node) }) // whoever came first
	for _, name := range missing {
		silent = append(silent, cluster.Passed{Node: name, Reason: "it had not answered when the answers were enough"})
	}
	return answers, silent
}

// reply is what came of asking one node.
type reply struct {
	cluster.Answer
	from string
	err  error
}

// askOne returns the answer of one node.
func (h *Handler) askOne(ctx context.Context, node cluster.Node, b cluster.Ballot) (cluster.Answer, error) {
	var a cluster.Answer
	var err error
	if node.Name == h.Node {
		a, err = h.Detach(ctx, h.Node, b.Epoch, b.View.LeaderIndex)
	} else {
		a, err = h.Peers.Detach(ctx, node, b.Epoch, b.View.LeaderIndex)
	}
	if err != nil {
		h.Log.Info("no answer", "node", node.Name, "epoch", b.Epoch, "error", err)
	}
	return a, err
}

// elected ends a round of electing. One that named nobody is repeated soon.
func (h *Handler) elected(err error) {
	if err != nil {
		h.Log.Warn("undecided", "error", err)
		h.rest(retryAfter)
	}
}
