package registry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/understudy-ha/understudy/cluster"
)

// Event is what the registry keeps of the cluster's history.
type Event = cluster.Event

const (
	prefixEvents = "understudy-events/"

	// MaxEvents is how many of the newest events are kept.
	MaxEvents = 500
)

// EventID makes the id of an event: it sorts by time, and is unique.
func EventID(at time.Time) string {
	var salt [4]byte
	_, _ = rand.Read(salt[:]) // never fails
	return fmt.Sprintf("%016x-%s", at.UnixNano(), hex.EncodeToString(salt[:]))
}

// AppendEvent adds an event and lets the oldest go. It fills in At and ID where
// they are empty. An event whose ID is there already is not added twice, so that
// an attempt that failed can be repeated with the event that came back.
func (c *Client) AppendEvent(ctx context.Context, e Event) (Event, error) {
	if e.At.IsZero() {
		e.At = time.Now().UTC()
	}
	if e.ID == "" {
		e.ID = EventID(e.At)
	}
	if _, err := c.cas(ctx, prefixEvents+e.ID, encode(e), 0); err != nil {
		return e, err
	}
	return e, c.trimEvents(ctx)
}

// trimEvents deletes what is beyond MaxEvents, oldest first.
func (c *Client) trimEvents(ctx context.Context) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	keys, _, err := c.api.KV().Keys(prefixEvents, "", consistent(ctx))
	if err != nil {
		return failed("list events", err)
	}
	slices.Sort(keys)
	for len(keys) > MaxEvents {
		var ops []*api.KVTxnOp
		for _, key := range keys[:min(len(keys)-MaxEvents, 64)] {
			ops = append(ops, &api.KVTxnOp{Verb: api.KVDelete, Key: key})
		}
		if _, err := c.transact(ctx, "delete old events", ops...); err != nil {
			return err
		}
		keys = keys[len(ops):]
	}
	return nil
}

// Events returns the events from since on, oldest first.
func (c *Client) Events(ctx context.Context, since time.Time) ([]Event, error) {
	pairs, err := c.list(ctx, prefixEvents)
	if err != nil {
		return nil, err
	}
	return parseEvents(pairs, since, nil), nil
}

// parseEvents leaves out those that are older, that were seen, or that cannot
// be read: one bad entry must not hide the history.
func parseEvents(pairs api.KVPairs, since time.Time, seen map[string]bool) []Event {
	var events []Event
	for _, p := range pairs {
		var e Event
		if seen[p.Key] || decode(p, &e) != nil || e.At.Before(since) {
			continue
		}
		events = append(events, e)
	}
	slices.SortStableFunc(events, func(a, b Event) int { return strings.Compare(a.ID, b.ID) })
	return events
}

// WatchEvents calls f with the events from since on, oldest first, and then with
// each that is added, once. While the registry cannot be read it keeps trying.
// It returns when ctx ends, with its error.
func (c *Client) WatchEvents(ctx context.Context, since time.Time, f func(Event)) error {
	seen := map[string]bool{}
	pause := pauses()
	var index uint64
	for ctx.Err() == nil {
		pairs, got, err := c.pollEvents(ctx, index)
		if err != nil {
			index = 0
			sleep(ctx, pause.NextBackOff())
			continue
		}
		pause.Reset()
		index = nextIndex(index, got)
		events := parseEvents(pairs, since, seen)
		seen = map[string]bool{}
		for _, p := range pairs {
			seen[p.Key] = true
		}
		for _, e := range events {
			f(e)
		}
	}
	return ctx.Err()
}

func (c *Client) pollEvents(ctx context.Context, index uint64) (api.KVPairs, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, pollLimit(index, c.timeout))
	defer cancel()
	q := consistent(ctx)
	q.WaitIndex, q.WaitTime = index, pollFor
	pairs, meta, err := c.api.KV().List(prefixEvents, q)
	if err != nil {
		return nil, 0, failed("read events", err)
	}
	return pairs, meta.LastIndex, nil
}
