package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/understudy-ha/understudy/cluster"
)

// SessionTTLFactor is how many times its TTL a session lives that nobody
// renews. Consul promises only that it lives no shorter than its TTL
// (https://developer.hashicorp.com/consul/docs/dynamic-app-config/sessions),
// and its servers double it (SessionTTLMultiplier in
// https://github.com/hashicorp/consul/blob/v1.20.1/agent/structs/structs.go).
// The holder counts one TTL; the others may have to wait for two.
const SessionTTLFactor = 2

// The refusals of the leader lock.
var (
	// ErrHeld: another session holds the lock.
	ErrHeld = errors.New("the leader lock is held")
	// ErrCheckFailing: a check that the session is to be bound to fails, or
	// is not registered yet.
	ErrCheckFailing = errors.New("a health check of the leader's session is failing")
	// ErrSessionGone: the session has ended, and with it the lock.
	ErrSessionGone = errors.New("the leader's session has ended")
)

// Lease is the leader lock, held. Its methods may be called concurrently.
type Lease struct {
	c *Client

	writes sync.Mutex // held while the leader key is written

	mu    sync.Mutex
	id    string
	next  string // the session that the lock may have gone over to; see settle
	ttl   time.Duration
	value cluster.Leader // as last written
}

// ID is the id of the session that holds the lock now; see Bind.
func (l *Lease) ID() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id
}

// TTL is what the session was made with. A lease is good for one TTL from the
// moment before the renewal was sent.
func (l *Lease) TTL() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ttl
}

// lockDelay is the shortest that Consul's client passes on; with 0 the server
// applies its default of 15 s.
const lockDelay = time.Millisecond

// Acquire makes a session and takes the leader lock with it, writing value. The
// lock is given only to the node and epoch that next-master names, checked in
// the same step; otherwise the error wraps ErrSuperseded, or ErrHeld where another
// session has it. The lock falls with each of the checks; where one fails already, as
// the servers know it, or is not registered, the error wraps ErrCheckFailing. A refused
// or failed attempt leaves no session. The TTL is from 1 s on; see SessionTTLFactor.
func (c *Client) Acquire(ctx context.Context, value cluster.Leader, ttl time.Duration, checks []cluster.Check) (*Lease, error) {
	assigned, err := c.assigned(ctx, value)
	if err != nil {
		return nil, err
	}
	id, err := c.createSession(ctx, value.Node, ttl, checks)
	if err != nil {
		return nil, err
	}
	for attempt := 0; ; attempt++ {
		_, err = c.transact(ctx, "take the leader lock", assigned,
			&api.KVTxnOp{Verb: api.KVLock, Key: keyLeader, Value: encode(value), Session: id})
		if err == nil {
			return &Lease{c: c, id: id, ttl: ttl, value: value}, nil
		}
		if _, what, _ := refusal(err); !strings.Contains(what, "lock delay") || attempt == 5 {
			break
		}
		sleep(ctx, lockDelay)
	}
	c.discard(ctx, id)
	op, what, refused := refusal(err)
	switch {
	case !refused:
		return nil, err
	case op == 0:
		return nil, fmt.Errorf("take the leader lock for epoch %d: %w", value.Epoch, ErrSuperseded)
	case strings.Contains(what, "invalid session"):
		return nil, fmt.Errorf("take the leader lock: %w", ErrCheckFailing)
	}
	return nil, fmt.Errorf("take the leader lock: %w", ErrHeld)
}

// discard ends a session that came to nothing; else its TTL would.
func (c *Client) discard(ctx context.Context, id string) {
	cleaning, cancel := c.afterwards(ctx)
	defer cancel()
	_, _ = c.api.Session().Destroy(id, writing(cleaning))
}

// Bind has the lock fall with the health checks of the local agent from now on: if
// one fails, it is free at once. The lock goes over to a new session in one step, so
// nobody sees it free, with the value that is there: whoever wrote it last may not have
// heard that it was written. The error wraps ErrCheckFailing where a check fails, as the
// servers know it. The former session is left to its TTL, so that a renewal which
// is under way meets it alive.
func (l *Lease) Bind(ctx context.Context, checks []cluster.Check) error {
	l.writes.Lock()
	defer l.writes.Unlock()
	if err := l.settle(ctx); err != nil {
		return err
	}
	pair, err := l.c.get(ctx, keyLeader)
	if err != nil {
		return err
	}
	l.mu.Lock()
	before, node, ttl := l.id, l.value.Node, l.ttl
	l.mu.Unlock()
	if pair == nil || pair.Session != before {
		return fmt.Errorf("bind the leader lock: %w", ErrSessionGone)
	}
	id, err := l.c.createSession(ctx, node, ttl, checks)
	if err != nil {
		return err
	}
	_, err = l.c.transact(ctx, "bind the leader lock",
		&api.KVTxnOp{Verb: api.KVCheckIndex, Key: keyLeader, Index: pair.ModifyIndex},
		&api.KVTxnOp{Verb: api.KVUnlock, Key: keyLeader, Value: pair.Value, Session: before},
		&api.KVTxnOp{Verb: api.KVLock, Key: keyLeader, Value: pair.Value, Session: id})
	_, _, refused := refusal(err)
	if refused {
		l.c.discard(ctx, id)
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil { // it may have been done, or be done yet
		l.next = id
		return err
	}
	l.id = id
	return nil
}

// settle finds out which session holds the lock after Bind had no answer. One that
// does not is ended, so that it never will.
func (l *Lease) settle(ctx context.Context) error {
	l.mu.Lock()
	id, next := l.id, l.next
	l.mu.Unlock()
	if next == "" {
		return nil
	}
	for ended := false; ; ended = true {
		pair, err := l.c.get(ctx, keyLeader)
		if err != nil {
			return err
		}
		holds := pair != nil && (pair.Session == id || pair.Session == next)
		if !holds {
			return fmt.Errorf("bind the leader lock: %w", ErrSessionGone)
		}
		if pair.Session == next || ended {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.id, l.next = pair.Session, ""
			return nil
		}
		if _, err := l.c.api.Session().Destroy(next, writing(ctx)); err != nil {
			return failed("end session "+next, err)
		}
	}
}

// assigned returns the condition that next-master stays as it is, provided that
// it names this node and epoch or does not exist.
func (c *Client) assigned(ctx context.Context, value cluster.Leader) (*api.KVTxnOp, error) {
	pair, err := c.get(ctx, keyNextMaster)
	if err != nil {
		return nil, err
	}
	if pair == nil {
		return &api.KVTxnOp{Verb: api.KVCheckNotExists, Key: keyNextMaster}, nil
	}
	var a cluster.Assignment
	if err := decode(pair, &a); err != nil {
		return nil, err
	}
	if a.Node != value.Node || a.Epoch != value.Epoch {
		return nil, fmt.Errorf("take the leader lock for %s, epoch %d: %w: %s, epoch %d",
			value.Node, value.Epoch, ErrSuperseded, a.Node, a.Epoch)
	}
	return &api.KVTxnOp{Verb: api.KVCheckIndex, Key: keyNextMaster, Index: pair.ModifyIndex}, nil
}

// createSession asks for what Consul's client cannot express: no node check,
// not even serfHealth, and yet service checks.
func (c *Client) createSession(ctx context.Context, node string, ttl time.Duration, bound []cluster.Check) (string, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	checks := []api.ServiceCheck{}
	for _, check := range bound {
		checks = append(checks, api.ServiceCheck{ID: check.ID()})
	}
	body := map[string]any{
		"Name": "understudy leader " + node, "Behavior": api.SessionBehaviorRelease,
		"TTL": ttl.String(), "LockDelay": lockDelay.String(),
		"NodeChecks": []string{}, "ServiceChecks": checks,
	}
	var made struct{ ID string }
	_, err := c.api.Raw().Write("/v1/session/create", body, &made, writing(ctx))
	var status api.StatusError
	switch {
	case err == nil:
		return made.ID, nil
	case errors.As(err, &status) && checkRefused(status.Body):
		return "", fmt.Errorf("create session: %w: %s", ErrCheckFailing, status.Body)
	}
	return "", failed("create session", err)
}

func checkRefused(body string) bool {
	return strings.Contains(body, "critical state") || strings.Contains(body, "Missing check") ||
		strings.Contains(body, "Missing service check")
}

// Fit asks the local agent about checks, and wraps ErrCheckFailing unless it
// knows all of them as not critical. The servers may not have heard of that yet.
func (c *Client) Fit(ctx context.Context, checks []cluster.Check) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	known, err := c.api.Agent().ChecksWithFilterOpts("", (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return failed("ask the agent for its checks", err)
	}
	for _, check := range checks {
		if now, ok := known[check.ID()]; !ok || now.Status == api.HealthCritical {
			return fmt.Errorf("%w: %s", ErrCheckFailing, check.ID())
		}
	}
	return nil
}

// Adopt takes up the lock that node held in that epoch before its daemon restarted,
// and renews it. It wraps ErrSessionGone where the lock is free, or another's.
func (c *Client) Adopt(ctx context.Context, node string, epoch cluster.Epoch) (*Lease, error) {
	pair, err := c.get(ctx, keyLeader)
	if err != nil {
		return nil, err
	}
	gone := fmt.Errorf("adopt the leader lock of %s for epoch %d: %w", node, epoch, ErrSessionGone)
	if pair == nil || pair.Session == "" {
		return nil, gone
	}
	l := &Lease{c: c, id: pair.Session}
	if err := decode(pair, &l.value); err != nil {
		return nil, err
	}
	if l.value.Node != node || l.value.Epoch != epoch {
		return nil, gone
	}
	return l, l.Renew(ctx)
}

// Renew lets the session live for another TTL. An error that wraps
// ErrSessionGone is final; after any other the lease still runs from the last
// renewal that succeeded. A Consul leader that was just cut off may still
// confirm; its successor starts the TTL of every session afresh, so the lease
// holds for its TTL all the same.
func (l *Lease) Renew(ctx context.Context) error {
	if err := l.settle(ctx); err != nil {
		return err
	}
	entry, err := l.c.renew(ctx, l.ID())
	if err != nil {
		return err
	}
	if ttl, err := time.ParseDuration(entry.TTL); err == nil {
		l.mu.Lock()
		l.ttl = ttl
		l.mu.Unlock()
	}
	return nil
}

// Renew lets the session of any node live for another TTL, for one whose own agent
// does not reach Consul's leader. The errors are those of Lease.Renew.
func (c *Client) Renew(ctx context.Context, session string) error {
	_, err := c.renew(ctx, session)
	return err
}

func (c *Client) renew(ctx context.Context, id string) (*api.SessionEntry, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	entry, _, err := c.api.Session().Renew(id, writing(ctx))
	switch {
	case err != nil && isStatus(err, http.StatusNotFound), err == nil && entry == nil:
		return nil, fmt.Errorf("renew session %s: %w", id, ErrSessionGone)
	case err != nil:
		return nil, failed("renew session "+id, err)
	}
	return entry, nil
}

// Update writes the value of the leader key, while the lock is held.
func (l *Lease) Update(ctx context.Context, value cluster.Leader) error {
	l.writes.Lock()
	defer l.writes.Unlock()
	if err := l.settle(ctx); err != nil {
		return err
	}
	id := l.ID()
	_, err := l.c.transact(ctx, "write the leader key",
		&api.KVTxnOp{Verb: api.KVCheckSession, Key: keyLeader, Session: id},
		&api.KVTxnOp{Verb: api.KVLock, Key: keyLeader, Value: encode(value), Session: id})
	if _, _, refused := refusal(err); refused {
		return fmt.Errorf("write the leader key: %w", ErrSessionGone)
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.value = value
	l.mu.Unlock()
	return nil
}

// Release gives the lock back and ends the session. The others see the lock
// free at once. A session that is gone already is no error.
func (l *Lease) Release(ctx context.Context) error {
	l.writes.Lock()
	defer l.writes.Unlock()
	if err := l.settle(ctx); err != nil && !errors.Is(err, ErrSessionGone) {
		return err
	}
	l.mu.Lock()
	id, value := l.id, l.value
	l.mu.Unlock()
	value.Ready = false
	_, err := l.c.transact(ctx, "release the leader lock",
		&api.KVTxnOp{Verb: api.KVUnlock, Key: keyLeader, Value: encode(value), Session: id})
	if _, _, refused := refusal(err); err != nil && !refused {
		return err
	}
	ctx, cancel := l.c.bound(ctx)
	defer cancel()
	if _, err := l.c.api.Session().Destroy(id, writing(ctx)); err != nil {
		return failed("end session "+id, err)
	}
	return nil
}
