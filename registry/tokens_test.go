package registry_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/registry"
)

func secret(hash string) func(string) bool { return func(h string) bool { return h == hash } }

func testTokens(t *testing.T, f *fixture) {
	now := time.Now().UTC()
	later := now.Add(time.Hour)
	a := registry.TokenUse{Node: "a", Kind: cluster.Manager, Key: "k1"}
	otherKey := registry.TokenUse{Node: "a", Kind: cluster.Manager, Key: "k2"}
	b := registry.TokenUse{Node: "b", Kind: cluster.Runner, Key: "k3"}
	for _, token := range []registry.Token{
		{ID: "free"}, {ID: "late"}, {ID: "for-b", Node: "b"}, {ID: "runners", Kind: cluster.Runner},
	} {
		token.SecretHash, token.Created, token.Expires = "hash", now, now.Add(time.Minute)
		check(t, f.CreateToken(t.Context(), token))
		check(t, f.CreateToken(t.Context(), token)) // nobody heard that it is there
		token.SecretHash = "other"
		if f.CreateToken(t.Context(), token) == nil {
			t.Error("an id was used twice")
		}
	}
	for _, step := range []struct {
		what, id, secret string
		by               registry.TokenUse
		at               time.Time
		want             error
	}{
		{"no such token", "none", "hash", a, now, registry.ErrTokenUnknown},
		{"wrong secret", "free", "guess", a, now, registry.ErrTokenUnknown},
		{"in time", "free", "hash", a, now, nil},
		{"the same join again", "free", "hash", a, now, nil},
		{"the same join again, long after", "free", "hash", a, later, nil},
		{"the same name, another key", "free", "hash", otherKey, now, registry.ErrTokenUsed},
		{"another node", "free", "hash", b, now, registry.ErrTokenUsed},
		{"too late", "late", "hash", a, later, registry.ErrTokenExpired},
		{"bound to another name", "for-b", "hash", a, now, registry.ErrTokenOther},
		{"bound to this name", "for-b", "hash", b, now, nil},
		{"bound to another kind", "runners", "hash", a, now, registry.ErrTokenOther},
		{"bound to this kind", "runners", "hash", b, now, nil},
	} {
		err := f.UseToken(t.Context(), step.id, secret(step.secret), step.by, step.at)
		if !errors.Is(err, step.want) || (step.want == nil && err != nil) {
			t.Errorf("%s: %v, want %v", step.what, err, step.want)
		}
	}
	check(t, f.RevokeToken(t.Context(), "free"))
	want(t, f.RevokeToken(t.Context(), "free"), registry.ErrTokenUnknown)

	// A token of a later week sweeps the old ones out.
	check(t, f.CreateToken(t.Context(), registry.Token{ID: "new", Created: now.Add(168 * time.Hour)}))
	left, err := f.ListTokens(t.Context())
	check(t, err)
	if len(left) != 1 || left[0].ID != "new" {
		t.Errorf("tokens: %+v", left)
	}
}

// A fresh token does not let anybody take the place of a member, not even from
// its address.
func testTokenNameInUse(t *testing.T, f *fixture) {
	now := time.Now()
	f.cluster(t)
	by := registry.TokenUse{Node: "a", Kind: cluster.Manager, Key: "k1"}
	for _, id := range []string{"first", "second"} {
		check(t, f.CreateToken(t.Context(), registry.Token{ID: id, Created: now, Expires: now.Add(time.Hour)}))
	}
	check(t, f.UseToken(t.Context(), "first", secret(""), by, now))
	check(t, f.AddNode(t.Context(), cluster.Node{Name: "a"}))
	check(t, f.UseToken(t.Context(), "first", secret(""), by, now))
	by.Key = "k2"
	want(t, f.UseToken(t.Context(), "second", secret(""), by, now), registry.ErrNameTaken)
	tokens, err := f.ListTokens(t.Context())
	check(t, err)
	if tokens[1].Used != nil {
		t.Error("the refused attempt spent the token")
	}
}

// A node that was removed must not come back with the token it once used.
func testTokensOfRemoved(t *testing.T, f *fixture) {
	now := time.Now()
	f.cluster(t)
	check(t, f.CreateToken(t.Context(), registry.Token{ID: "x", Created: now, Expires: now.Add(time.Hour)}))
	by := registry.TokenUse{Node: "a", Kind: cluster.Manager, Key: "k"}
	check(t, f.UseToken(t.Context(), "x", secret(""), by, now))
	check(t, f.AddNode(t.Context(), cluster.Node{Name: "a"}))
	check(t, f.RemoveNode(t.Context(), "a", "op"))
	want(t, f.UseToken(t.Context(), "x", secret(""), by, now), registry.ErrTokenUnknown)
}

func testTokenRace(t *testing.T, f *fixture) {
	now := time.Now()
	check(t, f.CreateToken(t.Context(), registry.Token{ID: "x", Created: now, Expires: now.Add(time.Hour)}))
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		wins int
	)
	for _, node := range []string{"a", "b", "c", "d"} {
		all.Go(func() {
			err := f.UseToken(t.Context(), "x", secret(""), registry.TokenUse{Node: node, Kind: cluster.Manager}, now)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				wins++
			} else if !errors.Is(err, registry.ErrTokenUsed) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if wins != 1 {
		t.Errorf("%d nodes were let in", wins)
	}
}
