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
	"golang.org/x/sync/errgroup"

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

// SessionSpec describes the session that holds the leader lock.
type SessionSpec struct {
	Name   string          // for people
	TTL    time.Duration   // from 1 s on; see SessionTTLFactor
	Checks []cluster.Check // of the local agent: if one fails, the lock is free at once
}

// Lease is the leader lock, held. Its methods may be called concurrently.
type Lease struct {
	c  *Client
	id string

	mu    sync.Mutex
	ttl   time.Duration
	value cluster.Leader // as last written
}

// ID is the session's id, to be kept for Adopt.
func (l *Lease) ID() string { return l.id }

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
// the same step; otherwise the error wraps ErrSuperseded. Other refusals wrap
// ErrHeld or ErrCheckFailing. A refused or failed attempt leaves no session.
func (c *Client) Acquire(ctx context.Context, value cluster.Leader, spec SessionSpec) (*Lease, error) {
	var assigned *api.KVTxnOp
	before, both := errgroup.WithContext(ctx) // writes wait for this
	before.Go(func() (err error) {
		assigned, err = c.assigned(both, value)
		return err
	})
	before.Go(func() error { return c.allPass(both, spec.Checks) })
	if err := before.Wait(); err != nil {
		return nil, err
	}
	id, err := c.createSession(ctx, spec)
	if err != nil {
		return nil, err
	}
	for attempt := 0; ; attempt++ {
		_, err = c.transact(ctx, "take the leader lock", assigned,
			&api.KVTxnOp{Verb: api.KVLock, Key: keyLeader, Value: encode(value), Session: id})
		if err == nil {
			return &Lease{c: c, id: id, ttl: spec.TTL, value: value}, nil
		}
		if _, what, _ := refusal(err); !strings.Contains(what, "lock delay") || attempt == 5 {
			break
		}
		sleep(ctx, lockDelay)
	}
	cleaning, cancel := c.afterwards(ctx)
	defer cancel()
	_, _ = c.api.Session().Destroy(id, writing(cleaning)) // else its TTL ends it
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
func (c *Client) createSession(ctx context.Context, spec SessionSpec) (string, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	checks := []api.ServiceCheck{}
	for _, check := range spec.Checks {
		checks = append(checks, api.ServiceCheck{ID: check.ID()})
	}
	body := map[string]any{
		"Name": spec.Name, "Behavior": api.SessionBehaviorRelease,
		"TTL": spec.TTL.String(), "LockDelay": lockDelay.String(),
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

// allPass asks the local agent about checks, and wraps ErrCheckFailing unless it
// knows all of them as not critical. What the agent could not tell the servers
// while these had no leader, it tells them later, and that would end the session.
func (c *Client) allPass(ctx context.Context, checks []cluster.Check) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	known, err := c.api.Agent().ChecksWithFilterOpts("", (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return failed("ask the agent for its checks", err)
	}
	for _, check := range checks {
		if now, ok := known[check.ID()]; !ok || now.Status == api.HealthCritical {
			return fmt.Errorf("create session: %w: %s, as the agent knows it", ErrCheckFailing, check.ID())
		}
	}
	return nil
}

func checkRefused(body string) bool {
	return strings.Contains(body, "critical state") || strings.Contains(body, "Missing check") ||
		strings.Contains(body, "Missing service check")
}

// Adopt takes up the lock that this node held before its daemon restarted, and
// renews it. It wraps ErrSessionGone unless the session exists and holds the
// lock for node.
func (c *Client) Adopt(ctx context.Context, sessionID, node string) (*Lease, error) {
	l := &Lease{c: c, id: sessionID}
	if err := l.Renew(ctx); err != nil {
		return nil, err
	}
	pair, err := c.get(ctx, keyLeader)
	if err != nil {
		return nil, err
	}
	gone := fmt.Errorf("adopt session %s: %w", sessionID, ErrSessionGone)
	if pair == nil || pair.Session != sessionID {
		return nil, gone
	}
	if err := decode(pair, &l.value); err != nil {
		return nil, err
	}
	if l.value.Node != node {
		return nil, gone
	}
	return l, nil
}

// Renew lets the session live for another TTL. An error that wraps
// ErrSessionGone is final; after any other the lease still runs from the last
// renewal that succeeded. A Consul leader that was just cut off may still
// confirm; its successor starts the TTL of every session afresh, so the lease
// holds for its TTL all the same.
func (l *Lease) Renew(ctx context.Context) error {
	ctx, cancel := l.c.bound(ctx)
	defer cancel()
	entry, _, err := l.c.api.Session().Renew(l.id, writing(ctx))
	switch {
	case err != nil && isStatus(err, http.StatusNotFound), err == nil && entry == nil:
		return fmt.Errorf("renew session %s: %w", l.id, ErrSessionGone)
	case err != nil:
		return failed("renew session "+l.id, err)
	}
	if ttl, err := time.ParseDuration(entry.TTL); err == nil {
		l.mu.Lock()
		l.ttl = ttl
		l.mu.Unlock()
	}
	return nil
}

// Update writes the value of the leader key, while the lock is held.
func (l *Lease) Update(ctx context.Context, value cluster.Leader) error {
	_, err := l.c.transact(ctx, "write the leader key",
		&api.KVTxnOp{Verb: api.KVCheckSession, Key: keyLeader, Session: l.id},
		&api.KVTxnOp{Verb: api.KVLock, Key: keyLeader, Value: encode(value), Session: l.id})
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
	l.mu.Lock()
	value := l.value
	l.mu.Unlock()
	value.Ready = false
	_, err := l.c.transact(ctx, "release the leader lock",
		&api.KVTxnOp{Verb: api.KVUnlock, Key: keyLeader, Value: encode(value), Session: l.id})
	if _, _, refused := refusal(err); err != nil && !refused {
		return err
	}
	ctx, cancel := l.c.bound(ctx)
	defer cancel()
	if _, err := l.c.api.Session().Destroy(l.id, writing(ctx)); err != nil {
		return failed("end session "+l.id, err)
	}
	return nil
}
