package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/rig"
	"github.com/understudy-ha/understudy/haproxy/haproxytest"
	"github.com/understudy-ha/understudy/registry"
	"github.com/understudy-ha/understudy/registry/registrytest"
)

// The load balancer of these tests.
const (
	balancer     = "127.66.7.99"
	balancerWeb  = "http://" + balancer + ":8080"
	strict       = "127.66.7.98" // with --majority-only
	balancerDSN  = "postgresql://postgres@" + balancer + ":5432/postgres?sslmode=disable"
	readOnlyDSN  = "postgresql://postgres@" + balancer + ":5433/postgres?sslmode=disable"
	balancerArgs = "haproxy-config --bind " + balancer + " --port 8080"
)

// TestClientsFindTheActive lives through failovers as clients of the cluster do: they
// find the active node by a real HAProxy, by Consul's DNS, or by asking any node.
func TestClientsFindTheActive(t *testing.T) {
	t.Parallel()
	g := up(t, "lb", "127.66.7.11", 3, "--runners", "1", "--options", "minority_after=3s")
	g.healthy(t, "node1", 4)
	for _, story := range []struct {
		name string
		tell func(*testing.T, *group)
	}{
		{"what is printed", printed},
		{"PostgreSQL of the active dies", clientsSurvive},
		{"the active is frozen", sessionsEnd},
		{"only a minority is left", minorityLeft},
		{"over HTTPS, with a password", verified},
	} {
		if !t.Run(story.name, func(t *testing.T) { story.tell(t, g) }) {
			return
		}
	}
}

// balance starts a HAProxy with what the command prints on a node.
func (g *group) balance(t *testing.T, node string, more ...string) {
	t.Helper()
	haproxytest.Start(t, g.printed(t, node, more...))
}

func (g *group) printed(t *testing.T, node string, more ...string) string {
	t.Helper()
	r := g.balancer(t, node, more...)
	if r.code != 0 || r.err != "" {
		t.Fatal(r)
	}
	return r.out
}

func (g *group) balancer(t *testing.T, node string, more ...string) result {
	t.Helper()
	args := append([]string{"--root", filepath.Join(g.dir, node)}, strings.Fields(balancerArgs)...)
	return understudy(t, filepath.Join(bin, "understudy"), append(args, more...)...)
}

// printed is the same on every member, and leaves the runner out.
func printed(t *testing.T, g *group) {
	text := g.printed(t, "node1")
	for _, n := range g.nodes {
		if here := g.printed(t, n.Name); here != text {
			t.Errorf("%s prints another configuration:\n%s", n.Name, here)
		}
		if balanced := strings.Contains(text, "server "+n.Name+" "+n.Address+":8080"); balanced != (n.Kind == cluster.Manager) {
			t.Errorf("%s, a %s, is balanced: %v", n.Name, n.Kind, balanced)
		}
	}
	haproxytest.Check(t, text)
	haproxytest.Check(t, g.printed(t, "node2", "--plain"))
	want(t, g.balancer(t, "node2", "--port", "5432"), 2, "port 5432 of the load balancer is asked for twice")
}

// through is the text that a query through the load balancer returns.
func through(t *testing.T, dsn, query string) (v string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	err = conn.QueryRow(ctx, query).Scan(&v)
	return v, err
}

// post writes a note through the load balancer.
func post(t *testing.T, text string) error {
	t.Helper()
	return postTo(t, balancerWeb, text)
}

func postTo(t *testing.T, web, text string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	form := strings.NewReader(url.Values{"text": {text}}.Encode())
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, web+"/notes", form)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Close = true // the plain form leaves a session where it is
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode/100 != 2 {
		return fmt.Errorf("%s: %s: %w", response.Status, body, err)
	}
	return nil
}

// clientsSurvive kills the database of the active under clients of the load balancer: rows
// are written to PostgreSQL, and notes to the application.
func clientsSurvive(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 4)
	g.balance(t, "node1")
	g.found(t, before)
	g.readersSpread(t, before)
	var notes []string
	eventually(t, "the application is reached", func() error { return post(t, "before") })
	notes = append(notes, "before")
	w := writesTo(t, []probe.Target{{Node: "balancer", DSN: balancerDSN}})
	began := time.Now()
	g.must(t, "kill", before.Active, "postgres")
	renamed := make(chan time.Duration, 1)
	go func() { renamed <- renamedAfter(g.dns(before.Standbys()[0]), g.node(t, before.Active).Address, began) }()
	eventually(t, "the application is reached again", func() error {
		err := post(t, "after "+strconv.Itoa(len(notes)))
		if err == nil {
			notes = append(notes, "after "+strconv.Itoa(len(notes)))
		}
		return err
	})
	after := g.healthy(t, before.Standbys()[0], 4)
	if after.Active == before.Active {
		t.Errorf("%s is active again", before.Active)
	}
	w.goOn(t)
	j := w.end(t)
	t.Logf("no write through HAProxy for %s; DNS names the new active %s after the kill", j.Longest(began, time.Now()).Length().Round(time.Millisecond), (<-renamed).Round(time.Millisecond))
	g.sound(t, after, j)
	g.found(t, after)
	g.readersSpread(t, after)
	_, all := list(t, balancerWeb+"/notes")
	for _, n := range notes {
		if !slices.Contains(all, n) {
			t.Errorf("the note %q is lost: %v", n, all)
		}
	}
}

// list returns the texts of all notes.
func list(t *testing.T, url string) (code int, texts []string) {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var notes []struct{ Text string }
	if err := json.NewDecoder(response.Body).Decode(&notes); err != nil {
		t.Fatal(err)
	}
	for _, n := range notes {
		texts = append(texts, n.Text)
	}
	return response.StatusCode, texts
}

// readersSpread waits until readers are on every standby and nowhere else.
func (g *group) readersSpread(t *testing.T, s rig.Status) {
	t.Helper()
	var standbys []string
	for _, name := range s.Standbys() {
		standbys = append(standbys, g.address(t, name))
	}
	slices.Sort(standbys)
	eventually(t, "readers are on the standbys", func() error {
		seen := map[string]bool{}
		for range 8 {
			address, err := through(t, readOnlyDSN, "select host(inet_server_addr()) || ' ' || pg_is_in_recovery()")
			if err != nil {
				return err
			}
			seen[address] = true
		}
		for _, a := range standbys {
			if len(seen) != len(standbys) || !seen[a+" true"] {
				return fmt.Errorf("readers are on %v, standbys are %v", seen, standbys)
			}
		}
		return nil
	})
}

// reached waits until the load balancer leads to the database of a node. At first, for a
// moment, it takes every node for active.
func (g *group) reached(t *testing.T, node string) {
	t.Helper()
	eventually(t, "the database of "+node+" is reached", func() error {
		address, err := through(t, balancerDSN, "select host(inet_server_addr())")
		if err == nil && address != g.address(t, node) {
			err = fmt.Errorf("the one at %s answers", address)
		}
		return err
	})
}

// dns is where the Consul of a node answers DNS.
func (g *group) dns(node string) string {
	for _, n := range g.nodes {
		if n.Name == node {
			return registry.AgentConfig{Address: n.Address}.DNSAddress()
		}
	}
	return ""
}

// renamedAfter waits until DNS names one active node and not the former one, and returns
// how long that took.
func renamedAfter(dns, former string, began time.Time) time.Duration {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	for ctx.Err() == nil {
		if list, err := registrytest.Lookup(ctx, dns, cluster.RoleActive); err == nil && len(list) == 1 && list[0] != former {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(began)
}

// found waits until the active node is found from every node, by DNS and by asking it.
func (g *group) found(t *testing.T, s rig.Status) {
	t.Helper()
	roles := map[cluster.Role][]string{}
	for _, n := range g.nodes {
		role := cluster.RoleStandby
		switch {
		case n.Name == s.Active:
			role = cluster.RoleActive
		case n.Kind == cluster.Runner:
			role = cluster.RoleRunner
		}
		roles[role] = append(roles[role], n.Address)
	}
	for _, n := range g.nodes {
		eventually(t, "DNS on "+n.Name+" names the nodes by their roles", func() error {
			for role, addresses := range roles {
				slices.Sort(addresses)
				if got, err := registrytest.Lookup(t.Context(), g.dns(n.Name), role); err != nil || !slices.Equal(got, addresses) {
					return fmt.Errorf("%s is %v, not %v: %w", registry.DNSName(role), got, addresses, err)
				}
			}
			return nil
		})
		eventually(t, n.Name+" sends clients to the active", func() error {
			if code, body := get(t, strings.Replace(n.StatusURL, "/status", "/active", 1), "", ""); code != http.StatusOK || body["node"] != s.Active {
				return fmt.Errorf("%d %v", code, body)
			}
			if node, err := activeOverHTTPS(n); err != nil || node != s.Active {
				return fmt.Errorf("over HTTPS: %q, %w", node, err)
			}
			return nil
		})
	}
}

// activeOverHTTPS asks the API of a node for the active one, as a client that trusts the
// cluster's CA.
func activeOverHTTPS(n dev.NodeInfo) (node string, err error) {
	ca, err := certs.Dir(config.Paths(n.Root).SSL).CA()
	if err != nil {
		return "", err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}, Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	response, err := client.Get(n.APIURL + "/active")
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	var said struct{ Node string }
	err = json.NewDecoder(response.Body).Decode(&said)
	return said.Node, err
}

// sessionsEnd freezes the active under a client that waits for an answer: the load
// balancer ends its session, which the active cannot.
func sessionsEnd(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 4)
	g.balance(t, "node2")
	g.readersSpread(t, before) // so it has asked every node
	ctx, cancel := context.WithTimeout(t.Context(), 3*soon)
	defer cancel()
	conn, err := pgx.Connect(ctx, balancerDSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	var address string
	if err := conn.QueryRow(ctx, "select host(inet_server_addr())").Scan(&address); err != nil || address != g.address(t, before.Active) {
		t.Fatalf("the database at %s answers, not at %s: %v", address, g.address(t, before.Active), err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, "select pg_sleep(3600)")
		ended <- err
	}()
	began := time.Now()
	g.must(t, "freeze", before.Active)
	select {
	case err := <-ended:
		t.Logf("the session ended %s after the freeze began: %v", time.Since(began).Round(time.Millisecond), err)
	case <-time.After(soon):
		t.Error("the session goes on")
	}
	g.epochAfter(t, before)
	s, _ := g.tryStatus(t, before.Standbys()[0])
	g.reached(t, s.Active)
	g.must(t, "thaw", before.Active)
	if after := g.healthy(t, before.Standbys()[0], 4); after.Active == before.Active {
		t.Errorf("%s is active again", before.Active)
	}
}

// minorityLeft takes two of three nodes down: the last one serves as a minority. Clients
// reach it, those of a load balancer with --majority-only do not, and DNS names nobody.
func minorityLeft(t *testing.T, g *group) {
	before := g.healthy(t, "node1", 4)
	stays := before.Standbys()[0]
	g.balance(t, "node1")
	g.balance(t, "node1", "--majority-only", "--bind", strict)
	strictWeb := "http://" + strict + ":8080"
	eventually(t, "the application is reached", func() error { return errors.Join(post(t, "before"), postTo(t, strictWeb, "before")) })
	g.must(t, "kill", before.Standbys()[1])
	g.must(t, "kill", before.Active)
	g.serves(t, stays)
	eventually(t, "the application of the minority is reached", func() error { return post(t, "at risk") })
	g.reached(t, stays)
	if err := postTo(t, strictWeb, "not at risk"); err == nil {
		t.Error("--majority-only has sent a client to the minority")
	}
	if code, body := get(t, "http://"+g.address(t, stays)+":8008/active", "", ""); code != http.StatusOK || body["node"] != stays || body["at_risk"] != true {
		t.Errorf("/active of the one that serves leads to %d %v", code, body)
	}
	eventually(t, "DNS names nobody any more", func() error {
		if list, err := registrytest.Lookup(t.Context(), g.dns(stays), cluster.RoleActive); err == nil {
			return fmt.Errorf("it names %v", list)
		}
		return nil
	})
	g.must(t, "start", before.Standbys()[1])
	g.must(t, "start", before.Active)
	g.settles(t)
	after := g.healthy(t, stays, 4)
	g.found(t, after)
	eventually(t, "the application is reached again", func() error { return errors.Join(post(t, "after"), postTo(t, strictWeb, "after")) })
}

// verified has /status ask for a password, and the load balancer ask over HTTPS.
func verified(t *testing.T, g *group) {
	s := g.healthy(t, "node1", 4)
	for _, n := range g.nodes {
		if err := os.WriteFile(filepath.Join(n.Root, "etc/understudy/status-password"), []byte("lb:open sesame\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		file := config.Paths(n.Root).Config
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text = []byte(replaceLine(replaceLine(string(text), "paths:", "  paths: [/api/v3.1/status]"), "basic_auth_file:", "  basic_auth_file: /etc/understudy/status-password"))
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
		g.must(t, "kill", n.Name, "handler-runner")
		eventually(t, n.Name+" asks for a password", func() error {
			if code, body := get(t, n.StatusURL, "", ""); code != http.StatusUnauthorized {
				return fmt.Errorf("%d %v", code, body)
			}
			return nil
		})
	}
	if again := g.healthy(t, "node1", 4); again.Epoch != s.Epoch {
		t.Errorf("from epoch %d to %d", s.Epoch, again.Epoch)
	}
	ca := certs.Dir(config.Paths(g.nodes[0].Root).SSL).CAFile()
	for name, more := range map[string][]string{"HTTPS": {"--tls", "--ca-file", ca}, "plain HTTP": nil, "the plain form": {"--plain"}} {
		t.Run(name, func(t *testing.T) {
			g.balance(t, "node3", more...)
			if name != "the plain form" {
				g.readersSpread(t, s)
			}
			eventually(t, "the application on the active is reached", func() error { return post(t, name) })
			g.reached(t, s.Active)
		})
	}
}
