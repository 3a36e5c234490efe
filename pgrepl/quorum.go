package pgrepl

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/cluster"
)

// lockedQuorum is what every standby has configured: see Nobody.
var lockedQuorum = cluster.Quorum{Members: []string{Nobody}, K: 1}

// standbyNames writes a quorum for synchronous_standby_names, with every name
// spelled out.
func standbyNames(q cluster.Quorum) string {
	if q.K == 0 {
		return ""
	}
	return fmt.Sprintf("ANY %d (%s)", q.K, quotedNames(q.Members))
}

func quotedNames(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = `"` + strings.ReplaceAll(n, `"`, `""`) + `"`
	}
	return strings.Join(quoted, ", ")
}

// parseStandbyNames reads what standbyNames wrote. Anything else, such as a
// priority list, is not ok.
func parseStandbyNames(text string) (q cluster.Quorum, ok bool) {
	if strings.TrimSpace(text) == "" {
		return cluster.Quorum{}, true
	}
	rest, ok := strings.CutPrefix(text, "ANY ")
	if !ok {
		return q, false
	}
	k, rest, ok := strings.Cut(rest, " (")
	n, err := strconv.Atoi(k)
	if !ok || err != nil || !strings.HasSuffix(rest, ")") {
		return q, false
	}
	q.K = n
	for name := range strings.SplitSeq(strings.TrimSuffix(rest, ")"), ", ") {
		q.Members = append(q.Members, strings.Trim(name, `"`))
	}
	slices.Sort(q.Members)
	return q, true
}

// SetQuorum makes commits wait for q, and returns when that is in effect: every
// walsender counts by it, and no session commits by what was before. On a
// standby it is in effect from the promotion on; there every Follow locks it
// again, so it comes between Detach and Promote. A quorum of nobody lets commits
// pass without waiting.
//
// On a server that waited for nobody it takes a checkpoint, because only the
// checkpointer tells sessions to wait, and nothing else shows that it has done
// so. Without a server the file is written and the error wraps ErrNotRunning.
func (s *Server) SetQuorum(ctx context.Context, q cluster.Quorum) error {
	if err := s.setQuorum(ctx, q); err != nil {
		return fmt.Errorf("set synchronous standbys to %s: %w", q, err)
	}
	return nil
}

func (s *Server) setQuorum(ctx context.Context, q cluster.Quorum) error {
	if q.K < 0 || q.K > len(q.Members) {
		return fmt.Errorf("a quorum of %d among %d", q.K, len(q.Members))
	}
	d, err := s.readDynamic()
	if err != nil {
		return err
	}
	before, known := parseStandbyNames(d.standbys)
	var standby bool
	if err := s.row(ctx, "select pg_is_in_recovery()", nil, &standby); err != nil {
		_, failed := s.change(ctx, func(d *dynamic) { d.standbys = standbyNames(q) })
		if failed != nil {
			return failed
		}
		return err
	}
	if !standby && q.K > 0 && (!known || before.K > 0 && q.K != before.K) {
		// A walsender shows whom it counts, not how many it asks for. In a
		// priority list that begins with nobody every walsender shows
		// another place than before and after, and the list asks for no less.
		first := fmt.Sprintf("FIRST %d (%s)", q.K, quotedNames(append([]string{Nobody}, q.Members...)))
		if err := s.applyNames(ctx, first, q.Members, func(priority int) bool { return priority > 1 }); err != nil {
			return err
		}
	}
	members := q.Members
	if standby || q.K == 0 {
		members = nil
	}
	if err := s.applyNames(ctx, standbyNames(q), members, func(priority int) bool { return priority == 1 }); err != nil {
		return err
	}
	if q.K > 0 && known && before.K == 0 {
		return s.sql(ctx, "checkpoint")
	}
	return nil
}

// applyNames sets synchronous_standby_names and waits until the walsenders of
// members show a place in it that seen accepts, and all others none.
func (s *Server) applyNames(ctx context.Context, names string, members []string, seen func(priority int) bool) error {
	changed, err := s.change(ctx, func(d *dynamic) { d.standbys = names })
	if err != nil {
		return err
	}
	if err := s.inEffect(ctx, changed); err != nil {
		return err
	}
	return poll(ctx, pollEvery, func() (bool, error) {
		inEffect := true
		err := s.pool.with(ctx, func(c *pgx.Conn) error {
			rows, err := c.Query(ctx, `select application_name, coalesce(sync_priority, 0) from pg_stat_replication
				where state in ('streaming', 'catchup')`)
			if err != nil {
				return err
			}
			var name string
			var priority int
			_, err = pgx.ForEachRow(rows, []any{&name, &priority}, func() error {
				inEffect = inEffect && (slices.Contains(members, name) == (priority > 0)) && (priority == 0 || seen(priority))
				return nil
			})
			return err
		})
		return inEffect, err
	})
}
