package api_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/api"
	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
)

// newCA is the folder of a first node, which signs.
func newCA(t *testing.T) certs.Dir {
	t.Helper()
	d := certs.Dir(filepath.Join(t.TempDir(), "ssl"))
	check(t, d.NewCA("c1"))
	return d
}

// joined is the folder of a node with a certificate of ca.
func joined(t *testing.T, ca certs.Dir, name, ip string) certs.Dir {
	t.Helper()
	d := certs.Dir(filepath.Join(t.TempDir(), "ssl"))
	csr, err := d.Request(name, ip)
	check(t, err)
	cert, err := ca.Sign(csr, name, ip, cluster.Manager)
	check(t, err)
	text, err := ca.CA()
	check(t, err)
	check(t, d.Install(text, cert))
	return d
}

type admitter struct{ err error }

func (a admitter) Admit(_ context.Context, r api.JoinRequest) (api.JoinReply, error) {
	return api.JoinReply{Active: "n1", GossipKey: r.TokenID}, a.err
}

// exports is one export.
type exports struct{}

func (exports) List() (any, error) { return []map[string]string{{"id": "d1"}}, nil }

func (exports) Open(id string) (io.ReadCloser, int64, error) {
	text := strings.Repeat("{}\n", maxBody/2)
	switch id {
	case "d1":
		return io.NopCloser(strings.NewReader(text)), int64(len(text)), nil
	case "short":
		return io.NopCloser(strings.NewReader(text)), int64(len(text)) + 1, nil
	}
	return nil, 0, errors.New("no such divergence")
}

const maxBody = 1 << 20

// service is the API of n1 over mutual TLS; n3 was removed, n4 is a runner, and n9
// never was a member.
type service struct {
	node   *fakeNode
	view   cluster.View
	ca     certs.Dir
	server *httptest.Server
	self   cluster.Node
}

func serve(t *testing.T, node *fakeNode, admit api.Admitter) *service {
	t.Helper()
	return serveAs(t, newCA(t), node, admit)
}

// serveAs is serve, of the cluster with this CA.
func serveAs(t *testing.T, ca certs.Dir, node *fakeNode, admit api.Admitter) *service {
	t.Helper()
	s := &service{node: node, ca: ca, view: cluster.View{
		Info: &cluster.Info{ID: "c1"}, Removed: map[string]cluster.Tombstone{"n3": {Node: "n3"}},
		Nodes: map[string]cluster.Node{
			"n1": {Name: "n1", Kind: cluster.Manager}, "n2": {Name: "n2", Kind: cluster.Manager}, "n4": {Name: "n4", Kind: cluster.Runner},
		},
	}}
	conf, err := joined(t, s.ca, "n1", "127.0.0.1").ServerTLS()
	check(t, err)
	s.server = httptest.NewUnstartedServer(api.Handler(api.Backend{
		Node: node, Voter: node, Admit: admit, Caller: certs.PeerName, Divergences: exports{},
		Drill: func(_ context.Context, open bool) error { node.drilled = append(node.drilled, open); return node.err },
		View:  func() cluster.View { return s.view },
	}))
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.server.Listener = tls.NewListener(s.server.Listener, conf) // StartTLS has a certificate of its own
	s.server.Start()
	t.Cleanup(s.server.Close)
	s.self = cluster.Node{Name: "n1", Address: "127.0.0.1", Ports: cluster.Ports{API: s.server.Listener.Addr().(*net.TCPAddr).Port}}
	return s
}

// as returns the TLS settings of a member.
func (s *service) as(t *testing.T, name string) *tls.Config {
	t.Helper()
	conf, err := joined(t, s.ca, name, "127.0.0.2").ClientTLS("127.0.0.1")
	check(t, err)
	return conf
}

// mustBe fails unless err is an answer of this status and code.
func mustBe(t *testing.T, err error, status int, code string) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != code || e.Status != status || e.Message == "" {
		t.Errorf("got %v (%+v), want %d %s", err, e, status, code)
	}
}

func TestMembersAreServed(t *testing.T) {
	s := serve(t, active(), admitter{})
	c := api.NewClient(s.as(t, "n2"))
	check(t, c.Ping(t.Context(), s.self))
	r, err := c.Report(t.Context(), s.self)
	if err != nil || r.Node != "n1" || r.Epoch != 7 || !r.Open || r.State != cluster.Active || r.LagBytes != nil {
		t.Errorf("report %+v, %v", r, err)
	}
	a, err := c.Detach(t.Context(), s.self, 8, 1)
	if err != nil || s.node.by != "n2" || a.Epoch != 8 || a.Node != "n1" || a.Complete != cluster.Yes || a.Position != (cluster.Position{Timeline: 2, LSN: 0x3000060}) {
		t.Errorf("answer %+v, %v", a, err)
	}
	if l, err := c.Lend(t.Context(), s.self, 8); err != nil || l.Tenure != "l8" || len(s.node.lent) != 1 || s.node.lent[0] != "n2" {
		t.Errorf("loan %+v, %v, to %v", l, err, s.node.lent)
	}
	renewed, err := c.Vouch(t.Context(), s.self, "n9", 8) // the certificate tells who asks
	if err != nil || !renewed || len(s.node.vouched) != 1 || s.node.vouched[0] != "n2" {
		t.Errorf("vouched for %v, renewed %v, %v", s.node.vouched, renewed, err)
	}
	if a, err := c.Rally(t.Context(), s.self); err != nil || !a.Serving || a.Verdict != cluster.Minority {
		t.Errorf("rally: %+v, %v", a, err)
	}
	if l, err := c.LastWrite(t.Context(), s.self, 60); err != nil || l.At.Unix() != 60 {
		t.Errorf("last write: %+v, %v", l, err)
	}
	if check(t, c.Force(t.Context(), s.self)); s.node.forced != 1 {
		t.Errorf("forced %d times", s.node.forced)
	}
	check(t, c.Claim(t.Context(), s.self, cluster.Answer{Node: "n9", Side: &cluster.Side{Leader: "n9"}}))
	if len(s.node.claims) != 1 || s.node.claims[0].Node != "n2" || s.node.claims[0].Side == nil {
		t.Errorf("claimed by %+v", s.node.claims)
	}
	check(t, c.SetActive(t.Context(), s.self, api.SetActiveRequest{Node: "n2", Check: true}))
	if len(s.node.targets) != 1 || s.node.targets[0] != "n2?" {
		t.Errorf("to look is not to do: %v", s.node.targets)
	}
	s.node.targets = nil
	check(t, c.Drill(t.Context(), s.self, true))
	check(t, c.Drill(t.Context(), s.self, false))
	if !slices.Equal(s.node.drilled, []bool{true, false}) {
		t.Errorf("drilled: %v", s.node.drilled)
	}
	check(t, c.SetActive(t.Context(), s.self, api.SetActiveRequest{Node: "n2"}))
	if len(s.node.targets) != 1 || s.node.targets[0] != "n2: asked for by an operator, on n2" || len(s.node.asked) != 1 || s.node.asked[0] != 8 {
		t.Errorf("asked for %v, handed over to %v", s.node.asked, s.node.targets)
	}
}

// Exports are told to members whole, however long they are.
func TestDivergences(t *testing.T) {
	s := serve(t, active(), admitter{})
	c := api.NewClient(s.as(t, "n2"))
	var list []struct{ ID string }
	check(t, c.Divergences(t.Context(), s.self, &list))
	if len(list) != 1 || list[0].ID != "d1" {
		t.Errorf("list %+v", list)
	}
	f, err := c.DivergenceChanges(t.Context(), s.self, "d1")
	check(t, err)
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil || len(text) != 3*(maxBody/2) {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	short, err := c.DivergenceChanges(t.Context(), s.self, "short")
	check(t, err)
	defer short.Close()
	if _, err := io.ReadAll(short); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("an export that is cut off: %v", err)
	}
	_, err = c.DivergenceChanges(t.Context(), s.self, "d2")
	mustBe(t, err, 404, api.CodeNotFound)
}

func TestWhoIsRefused(t *testing.T) {
	s := serve(t, active(), admitter{})
	calls := map[string]func(*api.Client) error{
		"ping":       func(c *api.Client) error { return c.Ping(t.Context(), s.self) },
		"report":     func(c *api.Client) error { _, err := c.Report(t.Context(), s.self); return err },
		"detach":     func(c *api.Client) error { _, err := c.Detach(t.Context(), s.self, 8, 1); return err },
		"lend":       func(c *api.Client) error { _, err := c.Lend(t.Context(), s.self, 8); return err },
		"vouch":      func(c *api.Client) error { _, err := c.Vouch(t.Context(), s.self, "n2", 8); return err },
		"rally":      func(c *api.Client) error { _, err := c.Rally(t.Context(), s.self); return err },
		"force":      func(c *api.Client) error { return c.Force(t.Context(), s.self) },
		"last-write": func(c *api.Client) error { _, err := c.LastWrite(t.Context(), s.self, 1); return err },
		"claim":      func(c *api.Client) error { return c.Claim(t.Context(), s.self, cluster.Answer{Node: "n2"}) },
		"set-active": func(c *api.Client) error { return c.SetActive(t.Context(), s.self, api.SetActiveRequest{Node: "n2"}) },
		"drill":      func(c *api.Client) error { return c.Drill(t.Context(), s.self, true) },
		"divergence": func(c *api.Client) error { return c.Divergences(t.Context(), s.self, nil) },
		"certs":      func(c *api.Client) error { return c.Certificates(t.Context(), s.self, nil) },
		"renew":      func(c *api.Client) error { return c.Renew(t.Context(), s.self, nil) },
		"sign":       func(c *api.Client) error { _, err := c.Sign(t.Context(), s.self, nil); return err },
		"trust":      func(c *api.Client) error { return c.Trust(t.Context(), s.self, nil, nil) },
		"gossip":     func(c *api.Client) error { return c.KeepGossipKey(t.Context(), s.self, "k") },
		"changes":    func(c *api.Client) error { _, err := c.DivergenceChanges(t.Context(), s.self, "d1"); return err },
	}
	unnamed := s.as(t, "n2")
	unnamed.GetClientCertificate = nil
	pin, err := s.ca.Pin()
	check(t, err)
	foreign, err := joined(t, newCA(t), "n2", "127.0.0.2").ClientTLS("127.0.0.1")
	check(t, err)
	imposter := s.as(t, "n2") // trusts the right CA and shows a certificate of another
	imposter.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return foreign.GetClientCertificate(nil)
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			mustBe(t, call(api.NewClient(unnamed)), 403, api.CodeForbidden)
			mustBe(t, call(api.NewClient(certs.BootstrapTLS(pin))), 403, api.CodeForbidden)
			mustBe(t, call(api.NewClient(s.as(t, "n3"))), 403, api.CodeRemoved)
			mustBe(t, call(api.NewClient(s.as(t, "n9"))), 403, api.CodeForbidden)
			if err := call(api.NewClient(foreign)); err == nil || !strings.Contains(err.Error(), "unknown authority") {
				t.Errorf("a server of another CA was believed: %v", err)
			}
			var e *api.Error
			if err := call(api.NewClient(imposter)); err == nil || errors.As(err, &e) {
				t.Errorf("a certificate of another CA went through the handshake: %v", err)
			}
		})
	}
	runner := api.NewClient(s.as(t, "n4"))
	for _, vote := range []string{"detach", "lend", "vouch", "rally", "claim", "last-write", "drill", "trust", "gossip"} {
		mustBe(t, calls[vote](runner), 403, api.CodeForbidden)
	}
	if len(s.node.asked)+len(s.node.lent)+len(s.node.targets)+len(s.node.vouched)+len(s.node.claims)+s.node.forced != 0 {
		t.Errorf("something was done: %v, %v, %v, %v", s.node.asked, s.node.targets, s.node.vouched, s.node.claims)
	}
	check(t, calls["report"](runner))
	check(t, calls["set-active"](runner)) // an operator's wish
}

// A node that has just joined is asked by its own host before Consul has told it who
// the members are.
func TestWhoKnowsNobodyServes(t *testing.T) {
	s := serve(t, active(), admitter{})
	s.view = cluster.View{}
	check(t, api.NewClient(s.as(t, "n2")).Ping(t.Context(), s.self))
}

func TestJoinNeedsNoCertificate(t *testing.T) {
	s := serve(t, active(), admitter{})
	pin, err := s.ca.Pin()
	check(t, err)
	address := s.server.Listener.Addr().String()
	out, err := api.NewClient(certs.BootstrapTLS(pin)).Join(t.Context(), address, api.JoinRequest{TokenID: "t1", Node: cluster.Node{Name: "n4"}})
	if err != nil || out.Active != "n1" || out.GossipKey != "t1" {
		t.Errorf("%+v, %v", out, err)
	}
	wrong, err := newCA(t).Pin()
	check(t, err)
	if _, err := api.NewClient(certs.BootstrapTLS(wrong)).Join(t.Context(), address, api.JoinRequest{Secret: "s"}); !errors.Is(err, certs.ErrWrongPin) {
		t.Errorf("the secret was told to a cluster with another CA: %v", err)
	}
	s = serve(t, active(), admitter{api.Errorf(http.StatusForbidden, api.CodeToken, "the token has expired")})
	pin, err = s.ca.Pin()
	check(t, err)
	_, err = api.NewClient(certs.BootstrapTLS(pin)).Join(t.Context(), s.server.Listener.Addr().String(), api.JoinRequest{})
	mustBe(t, err, 403, api.CodeToken)
}

func TestBackendErrors(t *testing.T) {
	s := serve(t, standby(), admitter{})
	c := api.NewClient(s.as(t, "n2"))
	mustBe(t, c.SetActive(t.Context(), s.self, api.SetActiveRequest{Node: "n2"}), 503, api.CodeNoActive)
	s = serve(t, atRisk(), admitter{})
	c = api.NewClient(s.as(t, "n2"))
	mustBe(t, c.SetActive(t.Context(), s.self, api.SetActiveRequest{Node: "n2"}), 409, api.CodeNotActive)
	s = serve(t, active(), admitter{})
	s.node.err = errors.New("n2 is offline")
	c = api.NewClient(s.as(t, "n2"))
	err := c.SetActive(t.Context(), s.self, api.SetActiveRequest{Node: "n2"})
	mustBe(t, err, 409, api.CodeFailed)
	if !strings.Contains(err.Error(), "n1") || !strings.Contains(err.Error(), "n2 is offline") {
		t.Errorf("%v does not say who answered what", err)
	}
	_, err = c.Detach(t.Context(), s.self, 8, 1)
	mustBe(t, err, 409, api.CodeFailed)
}

func TestBadRequests(t *testing.T) {
	s := serve(t, active(), admitter{})
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: s.as(t, "n2")}}
	defer client.CloseIdleConnections()
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		code               string
	}{
		"unknown field":  {"POST", "detach", `{"epoch": 8, "force": true}`, 400, api.CodeBadRequest},
		"no JSON":        {"POST", "detach", `epoch=8`, 400, api.CodeBadRequest},
		"wrong type":     {"POST", "detach", `{"epoch": "8"}`, 400, api.CodeBadRequest},
		"negative epoch": {"POST", "detach", `{"epoch": -1}`, 400, api.CodeBadRequest},
		"empty":          {"POST", "detach", ``, 400, api.CodeBadRequest},
		"cut off":        {"POST", "set-active", `{"node": "n`, 400, api.CodeBadRequest},
		"more behind it": {"POST", "set-active", `{"node": "n2"} {"node": "n4"}`, 400, api.CodeBadRequest},
		"too large":      {"POST", "set-active", `{"node": "` + strings.Repeat("x", 1<<20) + `"}`, 400, api.CodeBadRequest},
		"unknown path":   {"GET", "secrets", ``, 404, api.CodeNotFound},
		"wrong method":   {"GET", "detach", ``, 404, api.CodeNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequest(c.method, "https://"+s.server.Listener.Addr().String()+"/api/v1/"+c.path, strings.NewReader(c.body))
			check(t, err)
			resp, err := client.Do(req)
			check(t, err)
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			check(t, err)
			var body map[string]string
			if err := json.Unmarshal(text, &body); err != nil || len(body) != 2 || body["error_code"] != c.code || body["message"] == "" || resp.StatusCode != c.status {
				t.Errorf("%d %s", resp.StatusCode, text)
			}
		})
	}
	if len(s.node.asked)+len(s.node.targets)+len(s.node.claims) != 0 {
		t.Errorf("something was done: %v, %v", s.node.asked, s.node.targets)
	}
}

// What is not one of our answers is told by its HTTP status, and a node that
// cannot be reached by its name and address.
func TestClientErrors(t *testing.T) {
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"a proxy in between":  {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>bad gateway", 502) }, "502 Bad Gateway"},
		"an error without us": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); _, _ = w.Write([]byte(`{}`)) }, "500 Internal"},
		"no JSON":             {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) }, "invalid character"},
		"without an end":      {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bytes.Repeat([]byte(" "), 2<<20)) }, "unexpected end"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewTLSServer(c.handler)
			defer server.Close()
			client := api.NewClient(server.Client().Transport.(*http.Transport).TLSClientConfig)
			node := cluster.Node{Name: "n9", Address: "127.0.0.1", Ports: cluster.Ports{API: server.Listener.Addr().(*net.TCPAddr).Port}}
			_, err := client.Report(t.Context(), node)
			var e *api.Error
			if err == nil || errors.As(err, &e) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "n9 (127.0.0.1:") {
				t.Errorf("error %v", err)
			}
		})
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	node := cluster.Node{Name: "n9", Address: "127.0.0.1", Ports: cluster.Ports{API: l.Addr().(*net.TCPAddr).Port}}
	check(t, l.Close())
	if err := api.NewClient(&tls.Config{}).Ping(t.Context(), node); err == nil || !strings.Contains(err.Error(), "n9 (127.0.0.1:") {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := api.NewClient(&tls.Config{}).Ping(ctx, node); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
