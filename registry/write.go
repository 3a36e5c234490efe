package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/understudy-ha/understudy/cluster"
)

// The refusals of writes.
var (
	// ErrClusterExists: the store holds another cluster.
	ErrClusterExists = errors.New("the registry already holds a cluster")
	// ErrNoCluster: the store holds no cluster.
	ErrNoCluster = errors.New("the registry holds no cluster")
	// ErrNameTaken: another member has this name.
	ErrNameTaken = errors.New("a member of this name exists")
	// ErrUnknownNode: no member has this name.
	ErrUnknownNode = errors.New("no member of this name")
	// ErrOldEpoch: the epoch is not greater than the one that is stored.
	ErrOldEpoch = errors.New("epoch is not greater than the present one")
	// ErrSuperseded: what was to be written belongs to an epoch or a node
	// that is no longer the chosen one.
	ErrSuperseded = errors.New("superseded by a later decision")
)

// CreateCluster writes the identity of a new cluster into an empty store.
// Repeated with the same id it succeeds and changes nothing; otherwise the error
// wraps ErrClusterExists.
func (c *Client) CreateCluster(ctx context.Context, info cluster.Info) error {
	ok, err := c.cas(ctx, keyCluster, encode(info), 0)
	if err != nil || ok {
		return err
	}
	there, err := c.info(ctx)
	switch {
	case err != nil:
		return err
	case there.ID != info.ID:
		return fmt.Errorf("create cluster: %w: %s", ErrClusterExists, there.ID)
	}
	return nil
}

func (c *Client) info(ctx context.Context) (cluster.Info, error) {
	var info cluster.Info
	pair, err := c.get(ctx, keyCluster)
	if err != nil {
		return info, err
	}
	if pair == nil {
		return info, ErrNoCluster
	}
	return info, decode(pair, &info)
}

// SetOptions lays change over the options of the cluster, as
// cluster.Options.With does, and returns what was set before and what is set
// then. The caller has checked them with cluster.CheckOptions.
func (c *Client) SetOptions(ctx context.Context, change cluster.Options) (before, after cluster.Options, err error) {
	err = c.modifyInfo(ctx, func(info *cluster.Info) {
		before = info.Options
		info.Options = before.With(change)
		after = info.Options
	})
	return before, after, err
}

// SetPause pauses the cluster, or with nil resumes it. It says whether that was a
// change: who pauses first is kept.
func (c *Client) SetPause(ctx context.Context, p *cluster.Pause) (changed bool, err error) {
	err = c.modifyInfo(ctx, func(info *cluster.Info) {
		if changed = (info.Paused == nil) != (p == nil); changed {
			info.Paused = p
		}
	})
	return changed, err
}

func (c *Client) modifyInfo(ctx context.Context, f func(*cluster.Info)) error {
	return c.modify(ctx, keyCluster, func(old *api.KVPair) ([]byte, error) {
		if old == nil {
			return nil, ErrNoCluster
		}
		var info cluster.Info
		if err := decode(old, &info); err != nil {
			return nil, err
		}
		f(&info)
		return encode(info), nil
	})
}

// AddNode makes n a member, and deletes a tombstone of its name in the same
// step. An entry of this name at the same address is this node's own earlier
// attempt, perhaps with an earlier certificate, and is replaced: a newcomer has
// passed UseToken, which refuses names in use. An entry at another address is an
// error that wraps ErrNameTaken.
func (c *Client) AddNode(ctx context.Context, n cluster.Node) error {
	doing := "add node " + n.Name
	for range casAttempts {
		old, err := c.get(ctx, keyNodes+n.Name)
		if err != nil {
			return err
		}
		var index uint64
		if old != nil {
			var there cluster.Node
			if err := decode(old, &there); err != nil {
				return err
			}
			if there.Address != n.Address {
				return fmt.Errorf("%s: %w, at %s", doing, ErrNameTaken, there.Address)
			}
			index = old.ModifyIndex
		}
		_, err = c.transact(ctx, doing,
			&api.KVTxnOp{Verb: api.KVGet, Key: keyCluster},
			&api.KVTxnOp{Verb: api.KVCAS, Key: keyNodes + n.Name, Value: encode(n), Index: index},
			&api.KVTxnOp{Verb: api.KVDelete, Key: keyRemoved + n.Name})
		op, _, refused := refusal(err)
		switch {
		case !refused:
			return err
		case op == 0:
			return fmt.Errorf("%s: %w", doing, ErrNoCluster)
		}
	}
	return fmt.Errorf("%s: %w", doing, ErrConflict)
}

// UpdateNode lets change edit the entry of a member, again on the newest state
// whenever another write came between. An error of change ends it and is
// returned. The name cannot be changed.
func (c *Client) UpdateNode(ctx context.Context, name string, change func(*cluster.Node) error) error {
	return c.modify(ctx, keyNodes+name, func(old *api.KVPair) ([]byte, error) {
		if old == nil {
			return nil, fmt.Errorf("update node %s: %w", name, ErrUnknownNode)
		}
		var n cluster.Node
		if err := decode(old, &n); err != nil {
			return nil, err
		}
		if err := change(&n); err != nil {
			return nil, err
		}
		n.Name = name
		return encode(n), nil
	})
}

// RemoveNode deletes a member and leaves a tombstone, in one step; join tokens
// that it had used are revoked. A member that is removed already is no error, an
// unknown one wraps ErrUnknownNode.
func (c *Client) RemoveNode(ctx context.Context, name, by string) error {
	doing := "remove node " + name
	tomb := encode(cluster.Tombstone{Node: name, By: by, At: time.Now().UTC()})
	for range casAttempts {
		old, err := c.get(ctx, keyNodes+name)
		if err != nil {
			return err
		}
		if old == nil {
			gone, err := c.get(ctx, keyRemoved+name)
			if err != nil {
				return err
			}
			if gone == nil {
				return fmt.Errorf("%s: %w", doing, ErrUnknownNode)
			}
			return c.revokeTokensOf(ctx, name)
		}
		_, err = c.transact(ctx, doing,
			&api.KVTxnOp{Verb: api.KVDeleteCAS, Key: keyNodes + name, Index: old.ModifyIndex},
			&api.KVTxnOp{Verb: api.KVSet, Key: keyRemoved + name, Value: tomb})
		if _, _, refused := refusal(err); refused {
			continue
		}
		if err != nil {
			return err
		}
		return c.revokeTokensOf(ctx, name)
	}
	return fmt.Errorf("%s: %w", doing, ErrConflict)
}

// SetNextMaster names the node that is to be active, if next-master and the
// leader key are still as in the view that was seen. ok is false when either was
// changed since, so an election that somebody forestalled comes to nothing, even
// if it ends much later. An epoch that is not greater than the stored one is
// refused with ErrOldEpoch.
func (c *Client) SetNextMaster(ctx context.Context, seen cluster.View, a cluster.Assignment) (ok bool, err error) {
	old, err := c.get(ctx, keyNextMaster)
	if err != nil {
		return false, err
	}
	if old != nil {
		var there cluster.Assignment
		if err := decode(old, &there); err != nil {
			return false, err
		}
		switch {
		case old.ModifyIndex != seen.NextMasterIndex:
			return false, nil
		case a.Epoch <= there.Epoch:
			return false, fmt.Errorf("assign epoch %d to %s: %w, which is %d", a.Epoch, a.Node, ErrOldEpoch, there.Epoch)
		}
	}
	if a.Epoch == 0 {
		return false, fmt.Errorf("assign epoch 0 to %s: %w", a.Node, ErrOldEpoch)
	}
	unchanged := &api.KVTxnOp{Verb: api.KVCheckIndex, Key: keyLeader, Index: seen.LeaderIndex}
	if seen.LeaderIndex == 0 {
		unchanged = &api.KVTxnOp{Verb: api.KVCheckNotExists, Key: keyLeader}
	}
	_, err = c.transact(ctx, "name the next active node", unchanged,
		&api.KVTxnOp{Verb: api.KVCAS, Key: keyNextMaster, Value: encode(a), Index: seen.NextMasterIndex})
	if _, _, refused := refusal(err); refused {
		return false, nil
	}
	return err == nil, err
}

// SetSync publishes the sync set, if the key still is at index (0: does not
// exist) and session holds the leader lock: whoever has seen the lock free has
// then seen the last word on the sync set. ok is false when the key was changed
// in between; a session without the lock is an error that wraps ErrSessionGone.
// The index moves on also where the set is the same.
func (c *Client) SetSync(ctx context.Context, session string, index uint64, s cluster.SyncSet) (ok bool, err error) {
	_, err = c.transact(ctx, "publish the sync set",
		&api.KVTxnOp{Verb: api.KVCheckSession, Key: keyLeader, Session: session},
		// Consul does not write what is there already, but the flags differ each time.
		&api.KVTxnOp{Verb: api.KVCAS, Key: keySync, Value: encode(s), Index: index, Flags: index})
	op, _, refused := refusal(err)
	switch {
	case !refused:
		return err == nil, err
	case op == 0:
		return false, fmt.Errorf("publish the sync set: %w", ErrSessionGone)
	}
	return false, nil
}
