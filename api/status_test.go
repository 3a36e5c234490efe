package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/api"
	"github.com/understudy-ha/understudy/cluster"
)

// fakeNode is a node that reports and answers as the test says.
type fakeNode struct {
	mode    cluster.Mode
	report  cluster.Report
	active  cluster.Node // empty: nobody that it knows of
	asked   []cluster.Epoch
	targets []string
	drilled []bool
	lent    []string // to whom
	vouched []string // for whom
	claims  []cluster.Answer
	forced  int
	by      string // who asked
	err     error
}

var (
	_ api.Node  = (*fakeNode)(nil)
	_ api.Voter = (*fakeNode)(nil)
)

func (n *fakeNode) Mode() cluster.Mode                    { return n.mode }
func (n *fakeNode) Report(context.Context) cluster.Report { return n.report }
func (n *fakeNode) Active() (cluster.Node, bool)          { return n.active, n.active.Name != "" }

func (n *fakeNode) Detach(_ context.Context, by string, epoch cluster.Epoch, _ uint64) (cluster.Answer, error) {
	n.asked, n.by = append(n.asked, epoch), by
	return cluster.Answer{Node: n.report.Node, Epoch: epoch, Complete: cluster.Yes, Position: cluster.Position{Timeline: 2, LSN: 0x3000060}}, n.err
}

func (n *fakeNode) Lend(_ context.Context, to string, epoch cluster.Epoch) (cluster.Loan, error) {
	n.lent = append(n.lent, to)
	return cluster.Loan{Tenure: cluster.LoanTenure(epoch)}, n.err
}

func (n *fakeNode) Vouch(_ context.Context, active string, epoch cluster.Epoch) (bool, error) {
	n.vouched = append(n.vouched, active)
	return n.err == nil, n.err
}

func (n *fakeNode) Rally(context.Context) (cluster.Answer, error) {
	return cluster.Answer{Node: n.report.Node, Verdict: cluster.Minority, Serving: true}, n.err
}

func (n *fakeNode) Claim(_ context.Context, a cluster.Answer) error {
	n.claims = append(n.claims, a)
	return n.err
}

func (n *fakeNode) Force(context.Context) error {
	n.forced++
	return n.err
}

func (n *fakeNode) LastWrite(_ context.Context, after cluster.LSN) (cluster.LastWrite, error) {
	return cluster.LastWrite{At: time.Unix(int64(after), 0)}, n.err
}

func (n *fakeNode) HandOver(_ context.Context, target, why string) error {
	n.targets = append(n.targets, target+": "+why)
	return n.err
}

func (n *fakeNode) MayHandOver(_ context.Context, target string) error {
	n.targets = append(n.targets, target+"?")
	return n.err
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func active() *fakeNode {
	return &fakeNode{mode: cluster.MajorityMode, report: cluster.Report{
		Node: "n1", Cluster: "c1", State: cluster.Active, Open: true, Mode: cluster.MajorityMode, Epoch: 7,
		Services: []cluster.Unit{{Name: "web", Leader: true, Running: cluster.Yes}},
	}}
}

// atRisk serves a part that is cut off.
func atRisk() *fakeNode {
	return &fakeNode{mode: cluster.AtRiskMode, report: cluster.Report{
		Node: "n1", Cluster: "c1", State: cluster.ActiveMinority, Mode: cluster.AtRiskMode, Epoch: 7, Side: &cluster.Side{Leader: "n1"},
	}}
}

func standby() *fakeNode {
	return &fakeNode{report: cluster.Report{Node: "n2", Cluster: "c1", State: cluster.Standby, Streaming: true, Epoch: 7}}
}

func TestStatusCodes(t *testing.T) {
	alone := standby()
	alone.report.Streaming = false
	expired := active() // its lease ended after it made the report
	expired.mode = cluster.Closed
	promoting := &fakeNode{report: cluster.Report{Node: "n1", State: cluster.Promoting}}
	runner := &fakeNode{report: cluster.Report{Node: "n4", State: cluster.Executing}}
	removed := &fakeNode{report: cluster.Report{Node: "n3", State: cluster.Leaving}}
	for name, c := range map[string]struct {
		node                                         *fakeNode
		status, leader, replica, health, ready, live int
	}{
		"active":                       {active(), 200, 200, 503, 200, 200, 200},
		"active in the minority":       {atRisk(), 200, 200, 503, 200, 200, 200},
		"standby":                      {standby(), 400, 503, 200, 200, 200, 200},
		"standby that does not stream": {alone, 400, 503, 503, 503, 503, 200},
		"lease just ended":             {expired, 400, 503, 503, 503, 503, 200},
		"promoting":                    {promoting, 400, 503, 503, 503, 503, 200},
		"runner":                       {runner, 400, 503, 503, 200, 200, 200},
		"removed":                      {removed, 400, 503, 503, 503, 503, 200},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(api.StatusHandler(c.node, api.StatusOptions{Paths: []string{"/api/v3.1/status"}}))
			defer server.Close()
			for path, want := range map[string]int{
				"/status": c.status, "/api/v3.1/status": c.status, "/leader": c.leader, "/replica": c.replica,
				"/health": c.health, "/ready": c.ready, "/live": c.live, "/nowhere": 404,
			} {
				for _, method := range []string{http.MethodGet, http.MethodHead} {
					req, err := http.NewRequest(method, server.URL+path, nil)
					check(t, err)
					resp, err := http.DefaultClient.Do(req)
					check(t, err)
					body, err := io.ReadAll(resp.Body)
					check(t, err)
					resp.Body.Close()
					if resp.StatusCode != want {
						t.Errorf("%s %s: %d, want %d", method, path, resp.StatusCode, want)
					}
					if (method == http.MethodHead) != (len(body) == 0) {
						t.Errorf("%s %s: body %q", method, path, body)
					}
				}
			}
		})
	}
}

func TestStatusBody(t *testing.T) {
	paused := active()
	paused.report.State, paused.report.Paused = cluster.Maintenance, true
	for _, c := range []struct {
		node *fakeNode
		want api.Status
	}{
		{active(), api.Status{Status: "active", Node: "n1", Cluster: "c1", Role: cluster.Active, Mode: "majority", Epoch: 7}},
		{atRisk(), api.Status{Status: "active", Node: "n1", Cluster: "c1", Role: cluster.ActiveMinority, Mode: "minority", AtRisk: true, Epoch: 7}},
		{paused, api.Status{Status: "active", Node: "n1", Cluster: "c1", Role: cluster.Maintenance, Mode: "majority", Epoch: 7, Paused: true}},
		{standby(), api.Status{Status: "standby", Node: "n2", Cluster: "c1", Role: cluster.Standby, Mode: "majority", Epoch: 7}},
		{&fakeNode{report: cluster.Report{Node: "n4", State: cluster.Executing}}, api.Status{Status: "runner", Node: "n4", Role: cluster.Executing, Mode: "majority"}},
		{&fakeNode{report: cluster.Report{Node: "n3", State: cluster.Leaving}}, api.Status{Status: "standby", Node: "n3", Role: cluster.Leaving, Mode: "majority", Removed: true}},
	} {
		w := httptest.NewRecorder()
		api.StatusHandler(c.node, api.StatusOptions{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/status", nil))
		var got api.Status
		check(t, json.Unmarshal(w.Body.Bytes(), &got))
		if len(got.Services) != len(c.node.report.Services) {
			t.Errorf("services %v", got.Services)
		}
		got.Services = nil
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("got %+v, want %+v", got, c.want)
		}
		if w.Header().Get("Content-Type") != "application/json" || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("headers %v", w.Header())
		}
	}
}

func TestStatusMethods(t *testing.T) {
	server := httptest.NewServer(api.StatusHandler(active(), api.StatusOptions{}))
	defer server.Close()
	for _, path := range []string{"/status", "/leader"} {
		for method, want := range map[string]int{
			http.MethodOptions: 200, http.MethodPost: 405, http.MethodPut: 405, http.MethodDelete: 405,
		} {
			req, err := http.NewRequest(method, server.URL+path, nil)
			check(t, err)
			resp, err := http.DefaultClient.Do(req)
			check(t, err)
			resp.Body.Close()
			if resp.StatusCode != want || resp.Header.Get("Allow") != "GET, HEAD, OPTIONS" {
				t.Errorf("%s %s: %d, Allow %q", method, path, resp.StatusCode, resp.Header.Get("Allow"))
			}
		}
	}
}

// Load balancers ask in HTTP/1.0, without a Host header.
func TestStatusOverOldHTTP(t *testing.T) {
	for _, c := range []struct {
		node *fakeNode
		want string
	}{{active(), " 200 "}, {standby(), " 400 "}} {
		server := httptest.NewServer(api.StatusHandler(c.node, api.StatusOptions{}))
		defer server.Close()
		for _, request := range []string{"GET /status HTTP/1.0\r\n\r\n", "HEAD /status HTTP/1.0\r\n\r\n", "OPTIONS /status HTTP/1.0\r\n\r\n"} {
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			check(t, err)
			_, err = io.WriteString(conn, request)
			check(t, err)
			line, err := bufio.NewReader(conn).ReadString('\n')
			check(t, err)
			conn.Close()
			want := c.want
			if strings.HasPrefix(request, "OPTIONS") {
				want = " 200 "
			}
			if !strings.HasPrefix(line, "HTTP/1.") || !strings.Contains(line, want) {
				t.Errorf("%q answered %q", request, line)
			}
		}
	}
}

func TestStatusBasicAuth(t *testing.T) {
	server := httptest.NewServer(api.StatusHandler(active(), api.StatusOptions{BasicAuth: "lb:se:cret\n"}))
	defer server.Close()
	for _, c := range []struct {
		user, password string
		want           int
	}{{"lb", "se:cret", 200}, {"lb", "secret", 401}, {"", "", 401}, {"lb", "", 401}, {"other", "se:cret", 401}} {
		for _, path := range []string{"/status", "/live"} {
			req, err := http.NewRequest(http.MethodGet, server.URL+path, nil)
			check(t, err)
			if c.user != "" {
				req.SetBasicAuth(c.user, c.password)
			}
			resp, err := http.DefaultClient.Do(req)
			check(t, err)
			resp.Body.Close()
			if resp.StatusCode != c.want || (c.want == 401) != (resp.Header.Get("WWW-Authenticate") != "") {
				t.Errorf("%s:%s asks %s: %d", c.user, c.password, path, resp.StatusCode)
			}
		}
	}
}

// An alias that stands twice, or that is one of the paths there are, is no
// reason not to serve.
func TestStatusAliasesMayRepeat(t *testing.T) {
	h := api.StatusHandler(standby(), api.StatusOptions{Paths: []string{"/status", "/mine", "/mine", "/live"}})
	for path, want := range map[string]int{"/status": 400, "/mine": 400, "/live": 200} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want {
			t.Errorf("%s: %d, want %d", path, w.Code, want)
		}
	}
}

// A load balancer can ask for the node that the majority stands behind.
func TestStatusOfAMode(t *testing.T) {
	for _, c := range []struct {
		node     *fakeNode
		majority int
		minority int
	}{{active(), 200, 400}, {atRisk(), 400, 200}, {standby(), 400, 400}} {
		for mode, want := range map[string]int{"majority": c.majority, "minority": c.minority} {
			w := httptest.NewRecorder()
			api.StatusHandler(c.node, api.StatusOptions{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/status?mode="+mode, nil))
			if w.Code != want {
				t.Errorf("%s with mode=%s: %d, want %d", c.node.report.State, mode, w.Code, want)
			}
		}
	}
}
