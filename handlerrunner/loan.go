package handlerrunner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// Where the standby that has come furthest cannot be active, nobody can: it may be
// the only one that has what was acknowledged. Then the best of the others takes
// that WAL from it, and is named in the next round. This is as safe as the answers
// were: both have promised the epoch, so what is lent is final, and no older active
// hears of the borrower. The lender's slot ends before it takes other WAL.

// Lend lets the node to take this one's WAL, which has promised the epoch.
func (h *Handler) Lend(ctx context.Context, to string, epoch cluster.Epoch) (cluster.Loan, error) {
	h.moving.Lock()
	defer h.moving.Unlock()
	view, d, db := h.snapshot()
	if h.Kind == cluster.Runner || d.Promise != epoch || d.Side != nil || view.Leader.Epoch >= epoch || h.followedEpoch() != 0 {
		return cluster.Loan{}, fmt.Errorf("%s does not stand still for epoch %d", h.Node, epoch)
	}
	t := cluster.LoanTenure(epoch)
	if err := h.Replication.Slots(ctx, t, []string{to}); err != nil {
		return cluster.Loan{}, fmt.Errorf("lend WAL to %s: %w", to, err)
	}
	return cluster.Loan{Tenure: t, Lines: d.on(db.Position.Timeline)}, nil
}

// borrow takes what the lender has beyond this node's WAL. What it does not get in
// time it gets in the next round.
func (h *Handler) borrow(b cluster.Ballot, lender string) error {
	from := b.Answers[slices.IndexFunc(b.Answers, func(a cluster.Answer) bool { return a.Node == lender })]
	ctx, cancel := context.WithTimeout(h.living, askWithin)
	defer cancel()
	node := b.View.Nodes[lender]
	loan, err := h.Peers.Lend(ctx, node, b.Epoch)
	if err != nil {
		return err
	}
	h.moving.Lock()
	defer h.moving.Unlock()
	if _, d, _ := h.snapshot(); d.Promise != b.Epoch || h.followedEpoch() != 0 {
		return errMoved
	}
	if err := h.embark(cluster.Leader{Lines: loan.Lines}); err != nil {
		return err
	}
	began := time.Now()
	err = h.Replication.Follow(ctx, cluster.Upstream{Node: node, Tenure: loan.Tenure})
	for at := cluster.LSN(0); err == nil && at < from.Position.LSN; {
		var db Database
		if db, err = h.Postgres.Observe(ctx); err == nil {
			at = db.Position.LSN
			err = sleep(ctx, gatherPoll)
		}
	}
	h.Log.Info("borrowed WAL", "from", lender, "epoch", b.Epoch, "took", time.Since(began), "error", err)
	if err == nil {
		h.Journal.Write(cluster.EventBorrowed, b.Epoch, fmt.Sprintf("%s took the WAL up to %s from %s, which cannot be active", h.Node, from.Position, lender), nil)
	}
	end, cancel := context.WithTimeout(h.living, askWithin)
	defer cancel()
	_, detached := h.Replication.Detach(end)
	return errors.Join(err, detached)
}
