package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/dev/rig"
)

// nodeJSON is an object of nodes list --json, as docs and scripts know it.
type nodeJSON struct {
	Name     string            `json:"name"`
	HostIP   string            `json:"host_ip"`
	Kind     string            `json:"kind"`
	State    string            `json:"state"`
	Checks   map[string]string `json:"checks"`
	LagBytes *int64            `json:"lag_bytes"`
	Timeline int               `json:"timeline"`
	Epoch    uint64            `json:"epoch"`
	Version  string            `json:"version"`
	Options  map[string]string `json:"options"`
}

// TestTrio lives through what may happen to a cluster of three, one after the
// other. After each story it is healthy again.
func TestTrio(t *testing.T) {
	t.Parallel()
	g := up(t, "t", "127.40.1.11", 3)
	g.healthy(t, "node1", 3)
	for _, story := range []struct {
		name string
		tell func(*testing.T, *group)
	}{
		{"what the commands show", show},
		{"options", options},
		{"tokens", tokens},
		{"status over HTTP", statusHTTP},
		{"set-active refuses", setActiveRefuses},
		{"set-active under writes", setActive},
		{"a drill", drilled},
		{"a daemon dies", daemonsDie},
		{"files", files},
		{"PostgreSQL of the active dies", postgresDies},
		{"the node of Consul's leader dies", consulLeaderDies},
		{"a standby is cut off", cutStandby},
		{"the active is frozen", frozen},
		{"the active goes down whole", nodeDies},
		{"handler-runner is restarted", handlerRestarts},
		{"the host of the active is shut down", shutDown},
		{"the cluster is paused", paused},
		{"the preferred primary comes back", preferred},
		{"a removed node", removed},
	} {
		if !t.Run(story.name, func(t *testing.T) { story.tell(t, g) }) {
			return
		}
	}
}

// keys returns the names of a JSON object's fields.
func keys(t *testing.T, raw json.RawMessage) []string {
	t.Helper()
	var object map[string]json.RawMessage
	if err := json.Unmarshal(raw, &object); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return slices.Sorted(maps.Keys(object))
}

func show(t *testing.T, g *group) {
	for _, raw := range ask[[]json.RawMessage](t, g, "node2", "nodes", "list") {
		if got, want := keys(t, raw), []string{"checks", "epoch", "host_ip", "kind", "lag_bytes", "name", "options", "state", "timeline", "version"}; !slices.Equal(got, want) {
			t.Errorf("nodes list has %v, not %v", got, want)
		}
		var n nodeJSON
		if err := json.Unmarshal(raw, &n); err != nil {
			t.Fatal(err)
		}
		if n.Kind != "manager" || n.Version != "test" || n.Epoch != 1 || n.Timeline != 2 || n.LagBytes == nil || n.HostIP != g.address(t, n.Name) {
			t.Errorf("%s", raw)
		}
		for _, check := range []string{"consul", "services", "database", "files", "heartbeat"} {
			if n.Checks[check] != "OK" {
				t.Errorf("%s of %s is %q", check, n.Name, n.Checks[check])
			}
		}
	}
	table := g.cluster(t, "node3", "nodes", "list")
	want(t, table, 0, "NAME ", "HOST_IP", "STATE", "CONSUL", "SERVICES", "DATABASE", "FILES", "HEARTBEAT", "LAG", "TIMELINE", "VERSION")
	if lines := strings.Split(strings.TrimSpace(table.out), "\n"); len(lines) != 4 {
		t.Errorf("%d lines: %v", len(lines), table)
	}
	one := ask[nodeJSON](t, g, "node3", "nodes", "get", "node2")
	if one.Name != "node2" || one.State != "standby" {
		t.Errorf("nodes get: %+v", one)
	}
	want(t, g.cluster(t, "node1", "nodes", "get", "node9"), 1, "node9 is not a member", "nodes list")
	want(t, g.cluster(t, "node1", "nodes", "get"), 2, "0 arguments given, 1 wanted")
	want(t, g.cluster(t, "node1", "nodes", "lst"), 2, `no command "lst"`)
	want(t, g.cluster(t, "node1", "status"), 0, "active    node1, epoch 1", "every acknowledged commit is on node1 and on 1 of [node2 node3]")
	events := ask[[]struct{ Kind, Node, Message string }](t, g, "node2", "events")
	if !slices.ContainsFunc(events, func(e struct{ Kind, Node, Message string }) bool {
		return e.Kind == "promoted" && e.Node == "node1"
	}) {
		t.Errorf("no promotion among the events: %v", events)
	}
}

// rollbacks undoes the last change of options, that again, and one of a node by its
// revision; not what has been changed since.
func rollbacks(t *testing.T, g *group, value func(string) string) {
	want(t, g.cluster(t, "node3", "options", "rollback"), 0, "check_ttl_multiplier: default -> 2", "ping_targets: default -> 127.40.1.11,127.40.1.13")
	if m, p := value("check_ttl_multiplier"), value("ping_targets"); m != "2" || p != "127.40.1.11,127.40.1.13" {
		t.Errorf("after the rollback check_ttl_multiplier is %q, ping_targets %q", m, p)
	}
	want(t, g.cluster(t, "node3", "options", "rollback"), 0, "check_ttl_multiplier: 2 -> default")
	if m := value("check_ttl_multiplier"); m != "1" {
		t.Errorf("after the rollback of the rollback check_ttl_multiplier is %q", m)
	}
	want(t, g.cluster(t, "node1", "nodes", "update", "node2", "--options", "priority=7"), 0)
	type revision struct {
		Revision string
		Changes  []struct{ Node, Name, Old, New string }
	}
	log := ask[[]revision](t, g, "node1", "options", "log")
	last := log[len(log)-1]
	if c := last.Changes; len(c) != 1 || c[0].Node != "node2" || c[0].Name != "priority" || c[0].New != "7" {
		t.Errorf("the last revision is %v", last)
	}
	want(t, g.cluster(t, "node1", "options", "rollback", log[len(log)-5].Revision), 1, "check_ttl_multiplier has been changed since, and is default now", "by hand")
	want(t, g.cluster(t, "node1", "options", "rollback", last.Revision), 0, "priority of node2: 7 -> default")
	want(t, g.cluster(t, "node1", "options", "rollback", "xyz"), 1, "there is no revision xyz", "options log")
	want(t, g.cluster(t, "node1", "options", "log"), 0, "REVISION", "node3", "priority of node2: 7 -> default")
}

func options(t *testing.T, g *group) {
	value := func(name string) string {
		t.Helper()
		for _, o := range ask[[]struct{ Name, Value string }](t, g, "node3", "options", "list") {
			if o.Name == name {
				return o.Value
			}
		}
		t.Errorf("options list has no %s", name)
		return ""
	}
	file := filepath.Join(g.dir, "options.yaml")
	if err := os.WriteFile(file, []byte("check_ttl_multiplier: 3\nping_targets: [127.40.1.11, 127.40.1.12]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Remove(file) }()
	want(t, g.cluster(t, "node2", "options", "set", file), 0, "check_ttl_multiplier is 3")
	if got := value("ping_targets"); got != "127.40.1.11,127.40.1.12" {
		t.Errorf("ping_targets is %q", got)
	}
	want(t, g.cluster(t, "node2", "options", "set", `{"check_ttl_multiplier": 2}`, "ping_targets=127.40.1.11,127.40.1.13"), 0)
	if m, p := value("check_ttl_multiplier"), value("ping_targets"); m != "2" || p != "127.40.1.11,127.40.1.13" {
		t.Errorf("check_ttl_multiplier is %q, ping_targets %q", m, p)
	}
	want(t, g.cluster(t, "node2", "options", "set", "check_ttl_multiplier=;ping_targets="), 0, "check_ttl_multiplier is 1", "ping_targets is -")
	rollbacks(t, g, value)
	for text, words := range map[string][]string{
		"sync_mod=strict":        {`unknown option "sync_mod"`, "options list"},
		"sync_mode=perhaps":      {"sync_mode", `"perhaps"`, "strict, available or async"},
		"check_ttl_multiplier=0": {"check_ttl_multiplier", `"0"`},
		"no-such-file":           {"no-such-file", "neither an existing file"},
	} {
		want(t, g.cluster(t, "node2", "options", "set", text), 2, words...)
	}
	// Flags may come after the name, as they do in the manual.
	want(t, g.cluster(t, "node1", "nodes", "update", "node3", "--options", "priority=50", "--options", "ping_targets=127.40.1.11,127.40.1.12"), 0, "node3 updated")
	n := ask[nodeJSON](t, g, "node2", "nodes", "get", "node3")
	if n.Options["priority"] != "50" || n.Options["ping_targets"] != "127.40.1.11,127.40.1.12" {
		t.Errorf("the options of node3 are %v", n.Options)
	}
	want(t, g.cluster(t, "node1", "nodes", "update", "--options", "priority=", "--options", "ping_targets=", "node3"), 0)
	if n := ask[nodeJSON](t, g, "node2", "nodes", "get", "node3"); len(n.Options) != 0 {
		t.Errorf("the options of node3 are %v", n.Options)
	}
	want(t, g.cluster(t, "node1", "nodes", "update", "node3", "--options", "sync_mode=strict"), 2, "sync_mode", "whole cluster")
	want(t, g.cluster(t, "node1", "nodes", "update", "node3", "--options", "priorty=1"), 2, `unknown option "priorty"`)
	want(t, g.cluster(t, "node1", "nodes", "update", "node9", "--options", "priority=1"), 1, "node9 is not a member")
	want(t, g.cluster(t, "node1", "nodes", "update", "node3"), 2, "nothing to change")
}

func tokens(t *testing.T, g *group) {
	made := ask[struct{ ID, Token string }](t, g, "node2", "token", "create", "--node", "node4", "--ttl", "5m")
	type row struct{ ID, Node, Kind, State string }
	find := func() (row, bool) {
		rows := ask[[]row](t, g, "node3", "token", "list")
		i := slices.IndexFunc(rows, func(r row) bool { return r.ID == made.ID })
		if i < 0 {
			return row{}, false
		}
		return rows[i], true
	}
	if r, ok := find(); !ok || r.Node != "node4" || r.Kind != "manager" || r.State != "open" {
		t.Errorf("the token is listed as %+v", r)
	}
	if text := g.cluster(t, "node1", "token", "list"); strings.Contains(text.out, made.Token) {
		t.Errorf("the secret is listed: %v", text)
	}
	want(t, g.cluster(t, "node1", "token", "revoke", made.ID), 0, "is revoked")
	if r, ok := find(); ok {
		t.Errorf("a revoked token is listed: %+v", r)
	}
	want(t, g.cluster(t, "node1", "token", "create", "--ttl", "-1m"), 2, "--ttl")
	want(t, g.cluster(t, "node1", "token", "create", "--node", "No Name"), 2, "--node")
}

// get asks a status port, as one of the users of the file.
func get(t *testing.T, url, user, password string) (code int, body map[string]any) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		request.SetBasicAuth(user, password)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, map[string]any{"error": err.Error()}
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &body); err != nil {
		body = map[string]any{"error": string(text)}
	}
	return response.StatusCode, body
}

func statusHTTP(t *testing.T, g *group) {
	s := g.healthy(t, "node1", 3)
	for _, n := range g.nodes {
		code, body := get(t, n.StatusURL, "", "")
		wantCode, wantStatus := http.StatusBadRequest, "standby"
		if n.Name == s.Active {
			wantCode, wantStatus = http.StatusOK, "active"
		}
		if code != wantCode || body["status"] != wantStatus || body["node"] != n.Name || body["mode"] != "majority" || body["epoch"] != float64(s.Epoch) {
			t.Errorf("%s answers %d %v", n.StatusURL, code, body)
		}
	}
	// Aliases and a password come with understudy.yaml, when the daemon starts.
	n := g.node(t, "node3")
	secret := filepath.Join(n.Root, "etc/understudy/status-password")
	if err := os.WriteFile(secret, []byte("lb:open sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := config.Paths(n.Root).Config
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := replaceLine(replaceLine(string(old), "paths:", "  paths: [/api/v3.1/status]"), "basic_auth_file:", "  basic_auth_file: /etc/understudy/status-password")
	for _, step := range []struct {
		config   string
		password string
		url      string
		code     int
	}{
		{text, "open sesame", "/api/v3.1/status", http.StatusBadRequest},
		{text, "closed sesame", "/status", http.StatusUnauthorized},
		{string(old), "", "/status", http.StatusBadRequest},
		{string(old), "", "/api/v3.1/status", http.StatusNotFound},
	} {
		if err := os.WriteFile(file, []byte(step.config), 0o644); err != nil {
			t.Fatal(err)
		}
		if step.url == "/api/v3.1/status" && step.config == text || step.url == "/status" && step.config != text {
			g.must(t, "kill", "node3", "handler-runner")
		}
		eventually(t, "the new handler-runner answers on "+step.url, func() error {
			user := ""
			if step.password != "" {
				user = "lb"
			}
			code, body := get(t, strings.TrimSuffix(n.StatusURL, "/status")+step.url, user, step.password)
			if code != step.code {
				return fmt.Errorf("it says %d %v, not %d", code, body, step.code)
			}
			return nil
		})
	}
	if again := g.healthy(t, "node1", 3); again.Epoch != s.Epoch {
		t.Errorf("the epoch went from %d to %d", s.Epoch, again.Epoch)
	}
}

func setActiveRefuses(t *testing.T, g *group) {
	s := g.healthy(t, "node1", 3)
	// One whose death leaves Consul its leader.
	standby := s.Standbys()[0]
	if standby == g.standbyLeadsConsul(t, s.Active) {
		standby = s.Standbys()[1]
	}
	want(t, g.cluster(t, standby, "set-active", s.Active), 0, s.Active+" is the active node already")
	want(t, g.cluster(t, standby, "set-active", "node9"), 1, "node9 is not a member of the cluster")
	want(t, g.cluster(t, standby, "set-active"), 2, "0 arguments given, 1 wanted")
	want(t, g.cluster(t, standby, "set-active", standby, "--timeout", "soon"), 2, "--timeout")
	want(t, g.cluster(t, standby, "nodes", "update", standby, "--options", "no_failover=true"), 0)
	want(t, g.cluster(t, standby, "set-active", standby), 1, standby+" has no_failover set", "no_failover=false")
	want(t, g.cluster(t, standby, "nodes", "update", standby, "--options", "no_failover="), 0)
	g.must(t, "kill", standby)
	want(t, g.cluster(t, s.Active, "set-active", standby, "--timeout", "30s"), 1, standby+" is offline")
	g.must(t, "start", standby)
	if again := g.healthy(t, "node1", 3); again.Epoch != s.Epoch || again.Active != s.Active {
		t.Errorf("%s was active in epoch %d, and %s in %d", s.Active, s.Epoch, again.Active, again.Epoch)
	}
}

func setActive(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	target := before.Standbys()[1]
	after := g.underWrites(t, func() {
		want(t, g.cluster(t, before.Standbys()[0], "set-active", target, "--timeout", "50s"), 0, target+" is the active node")
	})
	if after.Active != target || after.Epoch != before.Epoch+1 || after.Timeline != before.Timeline+1 {
		t.Errorf("from %+v to %+v", before, after)
	}
}

// daemonsDie kills every daemon of the active. Its init restarts them; that is no
// reason to fail over.
func daemonsDie(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	for _, daemon := range []string{"check-runner", "consul-watcher", "file-sync", "handler-runner", "postgres-helper", "consul"} {
		after := g.underWrites(t, func() {
			pid := g.node(t, before.Active).Pids[daemon]
			g.must(t, "kill", before.Active, daemon)
			eventually(t, daemon+" is restarted", func() error {
				if now := g.node(t, before.Active).Pids[daemon]; now == 0 || now == pid {
					return fmt.Errorf("process %d, was %d", now, pid)
				}
				return nil
			})
		})
		if after.Epoch != before.Epoch || after.Active != before.Active {
			t.Errorf("%s died: %s was active in epoch %d, and %s in %d", daemon, before.Active, before.Epoch, after.Active, after.Epoch)
			before = after
		}
	}
}

func postgresDies(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	after := g.underWrites(t, func() {
		g.must(t, "kill", before.Active, "postgres")
		g.epochAfter(t, before)
	})
	if after.Active == before.Active {
		t.Errorf("%s is active again", before.Active)
	}
}

// epochAfter waits until another node than before is active.
func (g *group) epochAfter(t *testing.T, before rig.Status) {
	t.Helper()
	eventually(t, "another node is active", func() error {
		r := g.cluster(t, before.Standbys()[0], "status", "--json")
		var s rig.Status
		if err := json.Unmarshal([]byte(r.out), &s); err != nil {
			return errors.New(r.String())
		}
		if s.Epoch <= before.Epoch || s.Active == "" {
			return fmt.Errorf("%q is active in epoch %d", s.Active, s.Epoch)
		}
		return nil
	})
}

// frozen stops everything on the active for longer than its lease. When it goes
// on it must not acknowledge anything.
func frozen(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	g.underWrites(t, func() {
		g.must(t, "freeze", before.Active)
		g.epochAfter(t, before)
		if state := g.node(t, before.Active).State; state != "frozen" {
			t.Errorf("dev info says %s", state)
		}
		g.must(t, "thaw", before.Active)
	})
}

func nodeDies(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 3)
	g.underWrites(t, func() {
		g.must(t, "kill", before.Active)
		g.epochAfter(t, before)
		for _, n := range ask[[]nodeJSON](t, g, before.Standbys()[0], "nodes", "list") {
			if n.Name == before.Active && (n.State != "offline" || n.Checks["consul"] != "FAIL" || n.LagBytes != nil) {
				t.Errorf("%+v", n)
			}
		}
		g.must(t, "start", before.Active)
	})
}
