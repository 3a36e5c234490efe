package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

// Datacenter is the name of the Consul datacenter of every cluster. Server
// certificates must carry the DNS name server.understudy.consul.
const Datacenter = "understudy"

// The errors that callers tell apart with errors.Is.
var (
	// ErrNoLeader: the agent answered, but it has or reaches no Consul leader
	// at present, so nothing can be read consistently or written.
	ErrNoLeader = errors.New("consul has no leader")
	// ErrConflict: others kept changing the key while it was to be changed.
	ErrConflict = errors.New("changed by others again and again")
	// ErrMalformed: a key holds what this version cannot read.
	ErrMalformed = errors.New("malformed value in the registry")
)

// Config says how to reach the local Consul agent.
type Config struct {
	Address string        // ip:port of the agent's HTTP API
	TLS     *tls.Config   // nil: plain HTTP
	Token   string        // secret of the token to show; empty: none, for tests
	Timeout time.Duration // bound of one request when its context has none nearer; 0: 8 s
	Patient bool          // requests are tried again while Consul's leader changes
}

// Client talks to the local Consul agent over connections that it keeps. It is
// safe for concurrent use, and holds no lock while it waits for an answer.
type Client struct {
	api     *api.Client
	conf    api.Config
	http    *http.Client
	timeout time.Duration
}

// defaultTimeout is above the agent's rpc_hold_timeout, so that a cluster
// without a leader is named as such and not as a timeout.
const defaultTimeout = 8 * time.Second

// Open prepares a client. It does not connect: an agent that is down shows as
// an error of the first call.
func Open(cfg Config) (*Client, error) {
	if _, _, err := net.SplitHostPort(cfg.Address); err != nil {
		return nil, fmt.Errorf("open registry: address %q: %w", cfg.Address, err)
	}
	scheme := "http"
	if cfg.TLS != nil {
		scheme = "https"
	}
	dialer := &net.Dialer{Timeout: 2 * time.Second, KeepAlive: 15 * time.Second}
	hc := &http.Client{Transport: &http.Transport{
		DialContext:         dialer.DialContext,
		TLSClientConfig:     cfg.TLS,
		TLSHandshakeTimeout: 5 * time.Second,
		MaxIdleConns:        16,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     5 * time.Minute,
	}}
	if cfg.Patient {
		hc.Transport = patient{hc.Transport.(*http.Transport)}
	}
	conf := api.Config{Address: cfg.Address, Scheme: scheme, Datacenter: Datacenter, Token: cfg.Token, HttpClient: hc}
	c, err := api.NewClient(&conf)
	if err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	timeout := cfg.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	return &Client{api: c, conf: conf, http: hc, timeout: timeout}, nil
}

// Close gives back the idle connections. Calls under way go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// bound gives one request its deadline.
func (c *Client) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.timeout)
}

// afterwards is a context for cleaning up after ctx may have ended.
func (c *Client) afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	return c.bound(context.WithoutCancel(ctx))
}

func consistent(ctx context.Context) *api.QueryOptions {
	return (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx)
}

func writing(ctx context.Context) *api.WriteOptions { return (&api.WriteOptions{}).WithContext(ctx) }

// failed words an error of Consul, and marks the lack of a leader or of a right.
func failed(doing string, err error) error {
	var status api.StatusError
	if errors.As(err, &status) {
		if says(status.Body, leaderless) {
			return fmt.Errorf("%s: %w: %s", doing, ErrNoLeader, status.Body)
		}
		switch {
		case strings.Contains(status.Body, "ACL not found"):
			return fmt.Errorf("%s: %w: this node's token is not known there; a node that was removed has none any more", doing, ErrRefused)
		case status.Code == http.StatusForbidden:
			return fmt.Errorf("%s: %w: %s", doing, ErrRefused, status.Body)
		}
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// leaderless are the agent's words for a leader that it has not, cannot reach, or
// that has just ceased to be one.
var leaderless = append([]string{"No cluster leader", "rpc error getting client", "Raft leader not found"}, moving...)

// isStatus says whether Consul answered with this HTTP code.
func isStatus(err error, code int) bool {
	var status api.StatusError
	return errors.As(err, &status) && status.Code == code
}

// get reads one key consistently. A key that does not exist is nil.
func (c *Client) get(ctx context.Context, key string) (*api.KVPair, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	pair, _, err := c.api.KV().Get(key, consistent(ctx))
	if err != nil {
		return nil, failed("read "+key, err)
	}
	return pair, nil
}

// list reads all keys below a prefix consistently.
func (c *Client) list(ctx context.Context, prefix string) (api.KVPairs, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	pairs, _, err := c.api.KV().List(prefix, consistent(ctx))
	if err != nil {
		return nil, failed("read "+prefix, err)
	}
	return pairs, nil
}

// transact does all operations or none. Refusals come back as txnRefused.
func (c *Client) transact(ctx context.Context, doing string, ops ...*api.KVTxnOp) (api.TxnResults, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	var txn api.TxnOps
	for _, op := range ops {
		txn = append(txn, &api.TxnOp{KV: op})
	}
	ok, answer, _, err := c.api.Txn().Txn(txn, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, failed(doing, err)
	}
	if !ok {
		for _, e := range answer.Errors {
			if strings.Contains(e.What, "Permission denied") {
				return nil, fmt.Errorf("%s: %w: %s", doing, ErrRefused, e.What)
			}
		}
		return nil, fmt.Errorf("%s: %w", doing, txnRefused(answer.Errors))
	}
	return answer.Results, nil
}

// txnRefused is the error of a transaction of which nothing was done, because
// a condition in it did not hold.
type txnRefused api.TxnErrors

func (r txnRefused) Error() string {
	var what []string
	for _, e := range r {
		what = append(what, e.What)
	}
	return "refused: " + strings.Join(what, "; ")
}

// refusal returns the first refused operation and Consul's words for it.
func refusal(err error) (op int, what string, ok bool) {
	var r txnRefused
	if !errors.As(err, &r) || len(r) == 0 {
		return 0, "", false
	}
	return r[0].OpIndex, r[0].What, true
}

func encode(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		// The values are plain structs of this module, which always encode.
		return nil
	}
	return text
}

func decode(pair *api.KVPair, into any) error {
	if err := json.Unmarshal(pair.Value, into); err != nil {
		return fmt.Errorf("%w: key %s: %w", ErrMalformed, pair.Key, err)
	}
	return nil
}

// modify changes one key by compare-and-set until it succeeds. change gets the
// present pair, nil where there is none, and returns the new value; an error of
// change ends it.
func (c *Client) modify(ctx context.Context, key string, change func(*api.KVPair) ([]byte, error)) error {
	for range casAttempts {
		old, err := c.get(ctx, key)
		if err != nil {
			return err
		}
		value, err := change(old)
		if err != nil {
			return err
		}
		var index uint64
		if old != nil {
			index = old.ModifyIndex
		}
		ok, err := c.cas(ctx, key, value, index)
		if err != nil || ok {
			return err
		}
	}
	return fmt.Errorf("write %s: %w", key, ErrConflict)
}

// casAttempts bounds modify. Each lost attempt means that another one won.
const casAttempts = 50

func (c *Client) cas(ctx context.Context, key string, value []byte, index uint64) (bool, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	ok, _, err := c.api.KV().CAS(&api.KVPair{Key: key, Value: value, ModifyIndex: index}, writing(ctx))
	if err != nil {
		return false, failed("write "+key, err)
	}
	return ok, nil
}
