package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// Client calls the API of other nodes. It keeps its connections open, so that
// an election does not wait for handshakes.
type Client struct{ http *http.Client }

// NewClient returns a client that shows and checks certificates as conf says.
// The address of a node is a name of its certificate.
func NewClient(conf *tls.Config) *Client {
	return newClient(&http.Transport{TLSClientConfig: conf})
}

// NewMemberClient returns a client that lives long: conf is asked for each connection,
// and told the address (IP) that is to be called.
func NewMemberClient(conf func(host string) *tls.Config) *Client {
	return newClient(&http.Transport{DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		raw, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, handshakeWithin)
		defer cancel()
		conn := tls.Client(raw, conf(host))
		if err := conn.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		return conn, nil
	}})
}

var dialer = &net.Dialer{Timeout: 2 * time.Second, KeepAlive: 5 * time.Second}

const handshakeWithin = 5 * time.Second

func newClient(t *http.Transport) *Client {
	t.DialContext, t.TLSHandshakeTimeout = dialer.DialContext, handshakeWithin
	t.MaxIdleConnsPerHost, t.IdleConnTimeout = 2, 5*time.Minute
	return &Client{&http.Client{
		Transport: t,
		// The node that is called is the one that is meant: should another have
		// become active, that one is not to hand over in its place.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Ping asks whether the node's daemons answer.
func (c *Client) Ping(ctx context.Context, n cluster.Node) error {
	return c.call(ctx, http.MethodGet, n, "ping", nil, nil)
}

// Report asks what the node tells of itself.
func (c *Client) Report(ctx context.Context, n cluster.Node) (r cluster.Report, err error) {
	err = c.call(ctx, http.MethodGet, n, "node", nil, &r)
	return r, err
}

// Detach asks the node to promise and to tell its final position.
func (c *Client) Detach(ctx context.Context, n cluster.Node, epoch cluster.Epoch, seen uint64) (a cluster.Answer, err error) {
	err = c.call(ctx, http.MethodPost, n, "detach", DetachRequest{epoch, seen}, &a)
	return a, err
}

// Lend asks the node, which has promised the epoch, for its WAL.
func (c *Client) Lend(ctx context.Context, n cluster.Node, epoch cluster.Epoch) (l cluster.Loan, err error) {
	err = c.call(ctx, http.MethodPost, n, "lend", LendRequest{epoch}, &l)
	return l, err
}

// Vouch asks the node to stand by this one, the active of the epoch. Who asks is
// told by the certificate.
func (c *Client) Vouch(ctx context.Context, n cluster.Node, _ string, epoch cluster.Epoch) (renewed bool, err error) {
	var r VouchReply
	err = c.call(ctx, http.MethodPost, n, "vouch", VouchRequest{epoch}, &r)
	return r.Renewed, err
}

// Rally asks a node that is cut off with this one where it stands.
func (c *Client) Rally(ctx context.Context, n cluster.Node) (a cluster.Answer, err error) {
	err = c.call(ctx, http.MethodPost, n, "rally", struct{}{}, &a)
	return a, err
}

// Claim asks the active node to hand over to this one, whose part of the cluster
// was written last. An *Error with CodeKept is final.
func (c *Client) Claim(ctx context.Context, active cluster.Node, a cluster.Answer) error {
	return c.call(ctx, http.MethodPost, active, "claim", a, nil)
}

// LastWrite asks when data on the node was last changed after an LSN.
func (c *Client) LastWrite(ctx context.Context, n cluster.Node, after cluster.LSN) (w cluster.LastWrite, err error) {
	err = c.call(ctx, http.MethodPost, n, "last-write", LastWriteRequest{after}, &w)
	return w, err
}

// SetActive asks the active node to hand over, or whether it would.
func (c *Client) SetActive(ctx context.Context, active cluster.Node, in SetActiveRequest) error {
	return c.call(ctx, http.MethodPost, active, "set-active", in, nil)
}

// Drill asks the active node to make, or to drop, what the writer of a drill
// needs.
func (c *Client) Drill(ctx context.Context, active cluster.Node, open bool) error {
	return c.call(ctx, http.MethodPost, active, "drill", DrillRequest{open}, nil)
}

// Force asks the node to become active although acknowledged commits may be
// missing there.
func (c *Client) Force(ctx context.Context, n cluster.Node) error {
	return c.call(ctx, http.MethodPost, n, "force", struct{}{}, nil)
}

// Join asks the manager at address (IP:port) to let this node in.
func (c *Client) Join(ctx context.Context, address string, in JoinRequest) (out JoinReply, err error) {
	err = c.do(ctx, http.MethodPost, "https://"+address+"/api/v1/join", address, in, &out)
	return out, err
}

// Clock asks what the clock of the member at address (IP:port) shows, which needs no
// certificate. By what it took to find out, and half a second, the time may be wrong.
func (c *Client) Clock(ctx context.Context, address string) (shows time.Time, took time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/api/v1/ping", nil)
	if err != nil {
		return shows, 0, fmt.Errorf("ask %s: %w", address, err)
	}
	began := time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		return shows, 0, fmt.Errorf("ask %s: %w", address, err)
	}
	defer resp.Body.Close()
	// It is sent with every answer, in whole seconds.
	shows, err = http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return shows, 0, fmt.Errorf("ask %s what its clock shows: %w", address, err)
	}
	return shows.Add(time.Second / 2), time.Since(began), nil
}

func (c *Client) call(ctx context.Context, method string, n cluster.Node, path string, in, out any) error {
	host := hostPort(n.Address, n.Ports.API)
	return c.do(ctx, method, "https://"+host+"/api/v1/"+path, n.Name+" ("+host+")", in, out)
}

// do sends in as JSON and decodes the answer into out. An answer that is not
// 2xx becomes an *Error.
func (c *Client) do(ctx context.Context, method, url, who string, in, out any) error {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return fmt.Errorf("ask %s: %w", who, err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, url, &body)
	if err != nil {
		return fmt.Errorf("ask %s: %w", who, err)
	}
	resp, err := c.send(req, who)
	if err != nil {
		return err
	}
	defer resp.Close()
	text, err := io.ReadAll(io.LimitReader(resp, maxBody))
	if err != nil {
		return fmt.Errorf("ask %s: %w", who, err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("ask %s: %w", who, err)
	}
	return nil
}

// open asks for something of any length.
func (c *Client) open(ctx context.Context, url, who string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", who, err)
	}
	return c.send(req, who)
}

// send returns the body of an answer that is 2xx; any other becomes an *Error.
func (c *Client) send(req *http.Request, who string) (io.ReadCloser, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", who, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", who, err)
	}
	e := &Error{Status: resp.StatusCode}
	if err := json.Unmarshal(text, e); err != nil || e.Message == "" {
		return nil, fmt.Errorf("ask %s: HTTP %s", who, resp.Status)
	}
	return nil, fmt.Errorf("%s: %w", who, e)
}
