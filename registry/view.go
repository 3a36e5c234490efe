package registry

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/consul/api"

	"github.com/understudy-ha/understudy/cluster"
)

const (
	prefix        = "understudy/"
	keyCluster    = prefix + "cluster"
	keyNodes      = prefix + "nodes/"
	keyNextMaster = prefix + "next-master"
	keyLeader     = prefix + "leader"
	keySync       = prefix + "sync"
	keyRemoved    = prefix + "removed/"
)

// View reads the shared state at one index, consistently. A store without a
// cluster is a View whose Info is nil, and no error. A value that cannot be
// read is an error that wraps ErrMalformed.
func (c *Client) View(ctx context.Context) (cluster.View, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	return c.view(consistent(ctx))
}

func (c *Client) view(q *api.QueryOptions) (cluster.View, error) {
	pairs, meta, err := c.api.KV().List(prefix, q)
	if err != nil {
		return cluster.View{}, failed("read the cluster's state", err)
	}
	return parse(pairs, meta.LastIndex)
}

// parse makes a View of what the store holds. Keys that it does not know are a
// later version's and do not matter to this one.
func parse(pairs api.KVPairs, index uint64) (cluster.View, error) {
	v := cluster.View{Index: index, Nodes: map[string]cluster.Node{}, Removed: map[string]cluster.Tombstone{}}
	for _, p := range pairs {
		var err error
		switch {
		case p.Key == keyCluster:
			v.Info = new(cluster.Info)
			err = decode(p, v.Info)
		case p.Key == keyNextMaster:
			v.NextMasterIndex = p.ModifyIndex
			err = decode(p, &v.NextMaster)
		case p.Key == keyLeader:
			v.LeaderIndex = p.ModifyIndex
			err = decode(p, &v.Leader)
			v.Leader.Held, v.Leader.Session = p.Session != "", p.Session
		case p.Key == keySync:
			v.SyncIndex = p.ModifyIndex
			err = decode(p, &v.Sync)
		case strings.HasPrefix(p.Key, keyNodes):
			var n cluster.Node
			err = decode(p, &n)
			v.Nodes[strings.TrimPrefix(p.Key, keyNodes)] = n
		case strings.HasPrefix(p.Key, keyRemoved):
			var t cluster.Tombstone
			err = decode(p, &t)
			v.Removed[strings.TrimPrefix(p.Key, keyRemoved)] = t
		}
		if err != nil {
			return cluster.View{}, err
		}
	}
	if v.Info != nil && v.Info.Schema > cluster.Schema {
		return cluster.View{}, fmt.Errorf("%w: the keys have layout %d, this version reads up to %d: upgrade this node",
			ErrMalformed, v.Info.Schema, cluster.Schema)
	}
	return v, nil
}

// Unreachable is what Watch reports while the registry cannot be read.
type Unreachable struct {
	Since time.Time // the state was known to be the newest then; with no answer yet, the watch began
	Err   error     // why the latest attempt failed
}

func (u *Unreachable) Error() string {
	return fmt.Sprintf("registry unreachable since %s: %v", u.Since.UTC().Format(time.RFC3339), u.Err)
}

func (u *Unreachable) Unwrap() error { return u.Err }

// pollFor bounds one long poll. It is short because a Consul server that was
// cut off while it led goes on holding the polls that began before, and answers
// them with what it had.
const pollFor = 3 * time.Second

// Watch calls changed with the present state, and again whenever a value, the
// holder of a lock or a key has really changed. While the registry cannot be
// read it calls failed, where that is not nil, at every attempt, with an
// *Unreachable; the first view after a failure is always handed over, changed or
// not, and says that it can be read again. Both are called one at a time and in
// order. Watch returns when ctx ends, with its error.
func (c *Client) Watch(ctx context.Context, changed func(cluster.View), failed func(error)) error {
	var (
		last  cluster.View
		fresh bool // last is what was handed over, and nothing failed since
		heard = time.Now()
		pause = pauses()
		index uint64
	)
	for ctx.Err() == nil {
		asked := time.Now()
		v, err := c.poll(ctx, index)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			fresh, index = false, 0
			if failed != nil {
				failed(&Unreachable{Since: heard, Err: err})
			}
			sleep(ctx, pause.NextBackOff())
			continue
		}
		pause.Reset()
		switch {
		case index == 0:
			heard = asked // the leader confirmed itself after that
		case v.Index > index:
			heard = time.Now() // only a majority moves the index
		}
		index = nextIndex(index, v.Index)
		if fresh && sameView(last, v) {
			continue
		}
		last, fresh = v, true
		changed(v)
	}
	return ctx.Err()
}

// poll waits for the state to go past index; 0 reads it at once.
func (c *Client) poll(ctx context.Context, index uint64) (cluster.View, error) {
	ctx, cancel := context.WithTimeout(ctx, pollLimit(index, c.timeout))
	defer cancel()
	q := consistent(ctx)
	q.WaitIndex, q.WaitTime = index, pollFor
	return c.view(q)
}

// pollLimit is how long an answer may take. Consul adds up to a sixteenth to
// the time that a poll asks for, so that not all return at once.
func pollLimit(index uint64, timeout time.Duration) time.Duration {
	if index == 0 {
		return timeout
	}
	return pollFor + pollFor/16 + timeout
}

// nextIndex is what to wait for after an answer at got; 0 reads at once. An
// index that went back says that the store was restored or made anew. One that
// stayed says that the poll ended without a change, or because of a restore: on
// that a server answers with what it held before, and would hold the next poll
// for the old index to the end.
// See https://developer.hashicorp.com/consul/api-docs/features/blocking.
func nextIndex(asked, got uint64) uint64 {
	switch {
	case asked == 0:
		return max(got, 1)
	case got <= asked:
		return 0
	}
	return got
}

// sameView compares all but the index, which other keys move too.
func sameView(a, b cluster.View) bool {
	a.Index, b.Index = 0, 0
	return reflect.DeepEqual(a, b)
}

// pauses are the waits between attempts at a registry that cannot be reached:
// short at first, because a leader is elected within seconds.
func pauses() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 50*time.Millisecond, time.Second
	b.Reset()
	return b
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
