package api_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/api"
	"github.com/understudy-ha/understudy/cluster"
)

// What is meant for the active node is sent on to it, with the scheme it came by.
func TestActiveIsFoundFromAnyNode(t *testing.T) {
	n := standby()
	n.active = cluster.Node{Name: "n1", Address: "10.0.0.1", Ports: cluster.Ports{API: 8009, Status: 8008}}
	six := n.active
	six.Address = "fd00::1"
	plain, secure := httptest.NewServer(api.StatusHandler(n, api.StatusOptions{})), httptest.NewTLSServer(api.StatusHandler(n, api.StatusOptions{}))
	defer plain.Close()
	defer secure.Close()
	for _, c := range []struct {
		method, url string
		active      cluster.Node
		status      int
		to          string
	}{
		{"GET", plain.URL + "/active", n.active, 307, "http://10.0.0.1:8008/status"},
		{"HEAD", plain.URL + "/active/", n.active, 307, "http://10.0.0.1:8008/status"},
		{"GET", plain.URL + "/active/status?mode=majority", n.active, 307, "http://10.0.0.1:8008/status?mode=majority"},
		{"GET", secure.URL + "/active", n.active, 307, "https://10.0.0.1:8009/status"},
		{"POST", secure.URL + "/active/api/v1/set-active", n.active, 307, "https://10.0.0.1:8009/api/v1/set-active"},
		{"GET", plain.URL + "/active", six, 307, "http://[fd00::1]:8008/status"},
		{"GET", plain.URL + "/active/%2F%2Felsewhere.example/", n.active, 307, "http://10.0.0.1:8008/elsewhere.example/"},
		{"GET", plain.URL + "/active", cluster.Node{}, 503, ""},
		{"GET", plain.URL + "/actively", n.active, 404, ""},
	} {
		n.active = c.active
		req, err := http.NewRequest(c.method, c.url, nil)
		check(t, err)
		resp, err := secure.Client().Transport.RoundTrip(req)
		check(t, err)
		body, err := io.ReadAll(resp.Body)
		check(t, err)
		resp.Body.Close()
		if to := resp.Header.Get("Location"); resp.StatusCode != c.status || to != c.to {
			t.Errorf("%s %s: %d, Location %q; want %d, %q", c.method, c.url, resp.StatusCode, to, c.status, c.to)
		}
		code := map[int]string{307: api.CodeRedirect, 404: api.CodeNotFound, 503: api.CodeNoActive}[c.status]
		if c.method != "HEAD" && !strings.Contains(string(body), `"error_code":"`+code+`"`) {
			t.Errorf("%s %s: %s", c.method, c.url, body)
		}
	}
}

// The password guards who is active, too.
func TestActiveAsksForThePassword(t *testing.T) {
	n := standby()
	n.active = cluster.Node{Name: "n1", Address: "10.0.0.1"}
	w := httptest.NewRecorder()
	api.StatusHandler(n, api.StatusOptions{BasicAuth: "lb:secret"}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/active", nil))
	if w.Code != 401 || w.Header().Get("Location") != "" {
		t.Errorf("%d, Location %q", w.Code, w.Header().Get("Location"))
	}
}

// An order to the active node that reaches another one is sent on, method and body and
// all, where the client follows. Our own client does not: it means the node that it calls.
func TestOrdersAreSentOn(t *testing.T) {
	first := serve(t, active(), admitter{})
	second := serveAs(t, first.ca, standby(), admitter{})
	second.node.active = first.self
	conf := first.as(t, "n2")
	mustBe(t, api.NewClient(conf).SetActive(t.Context(), second.self, api.SetActiveRequest{Node: "n2"}), 307, api.CodeNotActive)

	client := &http.Client{Transport: &http.Transport{TLSClientConfig: conf}}
	defer client.CloseIdleConnections()
	resp, err := client.Post("https://"+second.server.Listener.Addr().String()+"/api/v1/set-active", "application/json", strings.NewReader(`{"node": "n2"}`))
	check(t, err)
	resp.Body.Close()
	if resp.StatusCode != 200 || len(first.node.targets) != 1 || !strings.HasPrefix(first.node.targets[0], "n2: ") || len(second.node.targets) != 0 {
		t.Errorf("%d; the active was asked %v, the standby %v", resp.StatusCode, first.node.targets, second.node.targets)
	}
}
