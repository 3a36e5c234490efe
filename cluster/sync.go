package cluster

import (
	"fmt"
	"slices"
)

// SyncMode says what happens to commits while standbys are missing.
type SyncMode string

// The sync modes: see the option sync_mode.
const (
	Strict    SyncMode = "strict"
	Available SyncMode = "available"
	Async     SyncMode = "async"
)

// SyncSet is the value of the key sync: who may hold acknowledged commits, for
// elections to ask. K of Members have flushed every commit that was ever
// acknowledged, and Leader, while it was active in Epoch, has flushed all of
// them. With K 0 only Leader is known to have them.
type SyncSet struct {
	Epoch   Epoch    `json:"epoch"`
	Leader  string   `json:"leader"`
	Members []string `json:"members"` // sorted
	K       int      `json:"k"`
}

// Quorum is what PostgreSQL waits for: K of Members must flush a commit before
// it is acknowledged. K 0 waits for nobody.
type Quorum struct {
	Members []string `json:"members"` // sorted
	K       int      `json:"k"`
}

func (q Quorum) String() string {
	if q.K == 0 {
		return "nobody"
	}
	return fmt.Sprintf("any %d of %v", q.K, q.Members)
}

// Equal says whether two quorums wait for the same.
func (q Quorum) Equal(o Quorum) bool {
	return q.K == o.K && (q.K == 0 || sameSet(q.Members, o.Members))
}

// Covered says whether s is a safe publication of q: any group of members that
// an election on s is content with meets any group that acknowledged a commit
// under q. For every S of q with |S| >= q.K and every T of s.Members with
// |T| >= |s.Members|-s.K+1, S and T have a member in common.
//
// The same invariant as in Patroni's quorum commit
// (https://patroni.readthedocs.io/en/latest/replication_modes.html), written
// for sets that change.
func (s SyncSet) Covered(q Quorum) bool {
	outside := len(without(q.Members, s.Members...))
	return q.K-outside >= s.K
}

// Desired returns the quorum that a mode asks for, of standbys that stream and
// have caught up, in a cluster of that many managers: as many confirmations as
// make, with the active, a majority.
func Desired(mode SyncMode, managers int, standbys []string) Quorum {
	k := managers / 2
	if mode == Available {
		k = min(k, len(standbys))
	}
	if mode == Async || k == 0 {
		return Quorum{}
	}
	return Quorum{Members: union(standbys, nil), K: k}
}

// Opening returns the quorum that a new active node begins with, of those that may
// become its standbys. In mode Available it is one without the node that was active,
// if that makes it no smaller: that node comes later, and the quorum need not change
// while writes wait.
func Opening(v View, standbys []string) Quorum {
	mode, managers := v.SyncMode(), len(v.Managers())
	all := Desired(mode, managers, standbys)
	if rest := Desired(mode, managers, without(standbys, v.Sync.Leader)); mode == Available && rest.K == all.K {
		return rest
	}
	return all
}

// SyncStep is the next thing to do to bring the published set and PostgreSQL to
// the quorum that is wanted. At most one of Publish and Apply is set.
type SyncStep struct {
	Publish *SyncSet // write the key sync
	Apply   *Quorum  // set synchronous_standby_names, and see it in effect
	Await   bool     // wait until K of the wanted members have flushed past the change
	Reason  string
}

// PlanSync orders a change so that the published set covers what PostgreSQL
// waits for at every moment, even if the active dies between two steps:
//
//  1. publish the union of old and new members with the lower K: an election
//     asks at least everybody who may have acknowledged under either;
//  2. change PostgreSQL;
//  3. when K of the new members have flushed everything from before the change,
//     publish the new set.
//
// flushed says whether 3 is the case.
func PlanSync(published SyncSet, inEffect, want Quorum, flushed bool) SyncStep {
	goal := SyncSet{published.Epoch, published.Leader, want.Members, want.K}
	if inEffect.Equal(want) {
		switch {
		case published.equal(goal):
			return SyncStep{Reason: "the sync set is as wanted"}
		case want.K > 0 && !flushed:
			return SyncStep{Await: true, Reason: fmt.Sprintf("waiting until %s have flushed what came before", want)}
		}
		return SyncStep{Publish: &goal, Reason: fmt.Sprintf("commits are confirmed by %s", want)}
	}
	bridge := SyncSet{published.Epoch, published.Leader, union(published.Members, want.Members), min(published.K, want.K)}
	if !published.Covered(want) {
		return SyncStep{Publish: &bridge, Reason: fmt.Sprintf("commits will be confirmed by %s", want)}
	}
	return SyncStep{Apply: &want, Reason: fmt.Sprintf("commits are to be confirmed by %s", want)}
}

func (s SyncSet) equal(o SyncSet) bool {
	return s.Epoch == o.Epoch && s.Leader == o.Leader && s.K == o.K && sameSet(s.Members, o.Members)
}

// Needed is how many members of s an election must hear, so that one of them
// holds every acknowledged commit.
func (s SyncSet) Needed() int { return len(s.Members) - s.K + 1 }

// Enough says whether those who answered include somebody who holds every
// acknowledged commit: the leader of that set, or Needed of its members. A set
// with K 0 is only satisfied by its leader.
func (s SyncSet) Enough(answered []string) bool {
	if s.Epoch == 0 || slices.Contains(answered, s.Leader) {
		return true
	}
	heard := 0
	for _, m := range s.Members {
		if slices.Contains(answered, m) {
			heard++
		}
	}
	return s.K > 0 && heard >= s.Needed()
}
