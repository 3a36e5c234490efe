package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/understudy-ha/understudy/cluster"
)

// Token admits one node to the cluster, once. The secret itself is not kept.
type Token struct {
	ID         string       `json:"id"`
	SecretHash string       `json:"secret_hash"`
	Node       string       `json:"node,omitempty"` // the only node it admits; empty: any
	Kind       cluster.Kind `json:"kind,omitempty"` // the only kind it admits; empty: any
	Created    time.Time    `json:"created"`
	Expires    time.Time    `json:"expires"`
	Used       *TokenUse    `json:"used,omitempty"`
}

// TokenUse says who joins, or joined, with a token.
type TokenUse struct {
	Node string       `json:"node"`
	Kind cluster.Kind `json:"kind"`
	Key  string       `json:"key"` // SHA-256 of the joining node's public key, hex
	At   time.Time    `json:"at"`
}

// The refusals of tokens.
var (
	// ErrTokenUnknown: there is no such token, or its secret is another.
	ErrTokenUnknown = errors.New("unknown join token")
	// ErrTokenExpired: it was not used in time.
	ErrTokenExpired = errors.New("join token has expired")
	// ErrTokenUsed: another node, or another key, has used it.
	ErrTokenUsed = errors.New("join token is used up")
	// ErrTokenOther: it is bound to another node or kind.
	ErrTokenOther = errors.New("join token is for another node or kind")
)

const (
	prefixTokens = "understudy-tokens/"

	// keepTokens is how long a token is still listed after it has expired.
	keepTokens = 24 * time.Hour
)

// CreateToken keeps a new token, and deletes those that expired a day ago or
// more. It may be repeated with the same token.
func (c *Client) CreateToken(ctx context.Context, t Token) error {
	old, err := c.ListTokens(ctx)
	if err != nil {
		return err
	}
	for _, o := range old {
		if o.Expires.Add(keepTokens).Before(t.Created) {
			if err := c.RevokeToken(ctx, o.ID); err != nil && !errors.Is(err, ErrTokenUnknown) {
				return err
			}
		}
	}
	ok, err := c.cas(ctx, prefixTokens+t.ID, encode(t), 0)
	if err != nil || ok {
		return err
	}
	there, err := c.get(ctx, prefixTokens+t.ID)
	if err == nil && (there == nil || !bytes.Equal(there.Value, encode(t))) {
		err = fmt.Errorf("create token %s: the id is in use", t.ID)
	}
	return err
}

// ListTokens returns all tokens, oldest first.
func (c *Client) ListTokens(ctx context.Context) ([]Token, error) {
	pairs, err := c.list(ctx, prefixTokens)
	if err != nil {
		return nil, err
	}
	var tokens []Token
	for _, p := range pairs {
		var t Token
		if err := decode(p, &t); err != nil {
			return nil, err
		}
		tokens = append(tokens, t)
	}
	slices.SortStableFunc(tokens, func(a, b Token) int { return a.Created.Compare(b.Created) })
	return tokens, nil
}

// RevokeToken deletes a token, and what CreateAdmission made for it. The error wraps
// ErrTokenUnknown when there is none.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	pair, err := c.get(ctx, prefixTokens+id)
	if err != nil {
		return err
	}
	if pair == nil {
		return fmt.Errorf("revoke token %s: %w", id, ErrTokenUnknown)
	}
	if err := c.revokeAdmission(ctx, id); err != nil {
		return err
	}
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if _, err := c.api.KV().Delete(prefixTokens+id, writing(ctx)); err != nil {
		return failed("revoke token "+id, err)
	}
	return nil
}

// UseToken spends a token for one node: of all who try, one succeeds, and only
// while no member has its name. The same node with the same key may use it
// again, also after it has expired, so that a join that broke off can be
// repeated. matches compares the secret with the hash that is kept. The errors
// wrap ErrTokenUnknown, ErrTokenOther, ErrTokenUsed, ErrTokenExpired or
// ErrNameTaken.
func (c *Client) UseToken(ctx context.Context, id string, matches func(hash string) bool, by TokenUse, now time.Time) error {
	doing := "use token " + id
	for range casAttempts {
		old, t, err := c.admitting(ctx, id, matches, by, now)
		if err != nil || t.Used != nil {
			return err
		}
		t.Used = &TokenUse{Node: by.Node, Kind: by.Kind, Key: by.Key, At: now}
		_, err = c.transact(ctx, doing,
			&api.KVTxnOp{Verb: api.KVCheckNotExists, Key: keyNodes + by.Node},
			&api.KVTxnOp{Verb: api.KVCAS, Key: prefixTokens + id, Value: encode(t), Index: old.ModifyIndex})
		op, _, refused := refusal(err)
		switch {
		case !refused:
			return err
		case op == 0:
			return fmt.Errorf("%s for %s: %w", doing, by.Node, ErrNameTaken)
		}
	}
	return fmt.Errorf("%s: %w", doing, ErrConflict)
}

// CheckToken says whether UseToken would spend a token, in the same errors but for
// ErrNameTaken.
func (c *Client) CheckToken(ctx context.Context, id string, matches func(hash string) bool, by TokenUse, now time.Time) error {
	_, _, err := c.admitting(ctx, id, matches, by, now)
	return err
}

// admitting reads a token that lets by join.
func (c *Client) admitting(ctx context.Context, id string, matches func(hash string) bool, by TokenUse, now time.Time) (*api.KVPair, Token, error) {
	var t Token
	pair, err := c.get(ctx, prefixTokens+id)
	if err != nil {
		return nil, t, err
	}
	unknown := fmt.Errorf("use token %s: %w", id, ErrTokenUnknown)
	if pair == nil {
		return nil, t, unknown
	}
	if err := decode(pair, &t); err != nil {
		return nil, t, err
	}
	if !matches(t.SecretHash) {
		return nil, t, unknown
	}
	return pair, t, t.admits(by, now)
}

// admits says whether a token whose secret was shown lets by join at now.
func (t Token) admits(by TokenUse, now time.Time) error {
	again := t.Used != nil && t.Used.Node == by.Node && t.Used.Kind == by.Kind && t.Used.Key == by.Key
	switch {
	case t.Node != "" && t.Node != by.Node:
		return fmt.Errorf("use token %s: %w: node %s", t.ID, ErrTokenOther, t.Node)
	case t.Kind != "" && t.Kind != by.Kind:
		return fmt.Errorf("use token %s: %w: kind %s", t.ID, ErrTokenOther, t.Kind)
	case again:
		return nil
	case t.Used != nil:
		return fmt.Errorf("use token %s: %w by node %s", t.ID, ErrTokenUsed, t.Used.Node)
	case !now.Before(t.Expires):
		return fmt.Errorf("use token %s: %w at %s", t.ID, ErrTokenExpired, t.Expires.UTC().Format(time.RFC3339))
	}
	return nil
}

// revokeTokensOf keeps a removed node from coming back with the token that it
// joined with.
func (c *Client) revokeTokensOf(ctx context.Context, node string) error {
	tokens, err := c.ListTokens(ctx)
	if err != nil {
		return err
	}
	for _, t := range tokens {
		if t.Used == nil || t.Used.Node != node {
			continue
		}
		if err := c.RevokeToken(ctx, t.ID); err != nil && !errors.Is(err, ErrTokenUnknown) {
			return err
		}
	}
	return nil
}
