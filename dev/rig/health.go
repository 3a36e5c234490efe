package rig

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// Status is what cluster status --json says, as far as it is needed here.
type Status struct {
	Active   string          `json:"active"`
	Epoch    cluster.Epoch   `json:"epoch"`
	Timeline uint32          `json:"timeline"`
	Sync     cluster.SyncSet `json:"sync"`
	Nodes    []NodeStatus    `json:"nodes"`
}

// NodeStatus is one node of a Status.
type NodeStatus struct {
	Name     string            `json:"name"`
	Kind     cluster.Kind      `json:"kind"`
	State    string            `json:"state"`
	Checks   map[string]string `json:"checks"`
	LagBytes *int64            `json:"lag_bytes"`
	Timeline uint32            `json:"timeline"`
	Epoch    cluster.Epoch     `json:"epoch"`
}

// Standbys are all managers but the active one.
func (s Status) Standbys() []string {
	var names []string
	for _, n := range s.Nodes {
		if n.Name != s.Active && n.Kind != cluster.Runner {
			names = append(names, n.Name)
		}
	}
	return names
}

// Ailments says what keeps a cluster from being as good as new: one active, all
// other managers its standbys on its timeline and in its sync set, every check
// passing. Without any it is empty.
func Ailments(s Status) []string {
	if s.Active == "" {
		return []string{"no node is active"}
	}
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, n := range s.Nodes {
		want := "standby"
		switch {
		case n.Name == s.Active:
			want = "leader"
		case n.Kind == cluster.Runner:
			want = "runner"
		}
		switch {
		case n.State != want:
			add("%s is %s", n.Name, n.State)
			continue
		case n.Kind == cluster.Runner:
		case n.Timeline != s.Timeline:
			add("%s is on timeline %d, not %d", n.Name, n.Timeline, s.Timeline)
		case n.LagBytes == nil:
			add("%s does not stream", n.Name)
		}
		for _, check := range slices.Sorted(maps.Keys(n.Checks)) {
			if n.Checks[check] != "OK" {
				add("%s of %s is %s", check, n.Name, n.Checks[check])
			}
		}
	}
	standbys := s.Standbys()
	slices.Sort(standbys)
	switch {
	case s.Sync.Epoch != s.Epoch || s.Sync.Leader != s.Active:
		add("the sync set is of epoch %d", s.Sync.Epoch)
	case !slices.Equal(s.Sync.Members, standbys) || s.Sync.K < 1:
		add("the sync set is %d of %v", s.Sync.K, s.Sync.Members)
	}
	return out
}

// Status asks the nodes, one after the other, until one answers.
func (r *Rig) Status(ctx context.Context) (Status, error) {
	var s Status
	err := r.ask(ctx, &s, "cluster", "status", "--json")
	return s, err
}

// lookEvery is the pause between two looks at the cluster's health.
const lookEvery = 300 * time.Millisecond

// AwaitHealthy waits until the cluster ails from nothing, in an epoch after the
// given one. The error says what was wrong in the end.
func (r *Rig) AwaitHealthy(ctx context.Context, after cluster.Epoch) (Status, error) {
	wrong := errors.New("nobody was asked yet")
	for {
		s, err := r.Status(ctx)
		if err == nil {
			ailments := Ailments(s)
			if s.Epoch <= after {
				ailments = append(ailments, fmt.Sprintf("the epoch still is %d", s.Epoch))
			}
			if len(ailments) == 0 {
				return s, nil
			}
			err = errors.New(strings.Join(ailments, "; "))
		}
		// An answer that ctx has cut off says nothing.
		if ctx.Err() == nil {
			wrong = err
		}
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("the cluster did not become healthy: %w: %w", ctx.Err(), wrong)
		case <-time.After(lookEvery):
		}
	}
}
