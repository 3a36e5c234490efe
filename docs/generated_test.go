package docs

import (
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/haproxy"
	"github.com/understudy-ha/understudy/pgrepl"
)

var update = flag.Bool("update", false, "write what follows from the code into the documents")

// generated are the parts of documents that follow from the code, by name. In a
// document each stands between two comments: begin NAME and end NAME.
var generated = map[string]func() string{
	"state diagram": stateDiagram,
	"state table":   stateTable,
	"checks":        checkTable,
	"options":       optionTable,
	"defaults":      portTable,
	"doors":         doorTable,
	"haproxy":       haproxySample,
}

// The generated parts of the documents are what the code says today.
func TestGenerated(t *testing.T) {
	found := map[string]bool{}
	for _, file := range documents {
		text := read(t, file)
		fresh := text
		for name, make := range generated {
			begin := fmt.Sprintf("<!-- begin %s: written by go test ./docs -update -->\n", name)
			end := fmt.Sprintf("<!-- end %s -->", name)
			before, rest, ok := strings.Cut(fresh, begin)
			_, after, closed := strings.Cut(rest, end)
			if !ok || !closed {
				continue
			}
			found[name] = true
			fresh = before + begin + make() + end + after
		}
		if fresh == text {
			continue
		}
		if !*update {
			t.Errorf("%s differs from the code; 'go test ./docs -update' writes it", file)
			continue
		}
		if err := os.WriteFile(file, []byte(fresh), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name := range generated {
		if !found[name] {
			t.Errorf("no document has the part %q", name)
		}
	}
}

// manyFrom is from how many states on the same row is drawn as one arrow.
const manyFrom = 4

// alike counts the rows that lead to the same state for the same reason.
func alike(t cluster.Transition) (n int) {
	for _, o := range cluster.Transitions() {
		if o.To == t.To && o.Comment == t.Comment {
			n++
		}
	}
	return n
}

// stateDiagram draws the table for Mermaid. What almost every state has in
// common is drawn once.
func stateDiagram() string {
	var b strings.Builder
	b.WriteString("```mermaid\nstateDiagram-v2\n    [*] --> joining\n    state \"any state\" as any\n")
	var drawn []string
	for _, t := range cluster.Transitions() {
		from := string(t.From)
		if alike(t) >= manyFrom {
			from = "any"
		}
		line := fmt.Sprintf("    %s --> %s: %s\n", from, t.To, label(t.Comment))
		if !slices.Contains(drawn, line) {
			drawn = append(drawn, line)
			b.WriteString(line)
		}
	}
	b.WriteString("```\n")
	return b.String()
}

// label breaks a comment into lines. Mermaid takes no colons and semicolons in it.
func label(s string) string {
	var lines []string
	line := ""
	for w := range strings.FieldsSeq(strings.NewReplacer(":", ",", ";", ",").Replace(s)) {
		if len(line)+len(w) > 24 && line != "" {
			lines, line = append(lines, line), ""
		}
		line = strings.TrimSpace(line + " " + w)
	}
	return strings.Join(append(lines, line), "<br>")
}

func stateTable() string {
	rows := [][]string{{"From", "To", "When", "What is done"}}
	var done []string
	for _, t := range cluster.Transitions() {
		from := string(t.From)
		if alike(t) >= manyFrom {
			from = fmt.Sprintf("any of %d states", alike(t))
		}
		do := "nothing more"
		if len(t.Do) > 0 {
			var words []string
			for _, a := range t.Do {
				words = append(words, string(a))
			}
			do = strings.Join(words, "; ")
		}
		key := from + string(t.To) + t.Comment + do
		if !slices.Contains(done, key) {
			done = append(done, key)
			rows = append(rows, []string{from, string(t.To), t.Comment, do})
		}
	}
	return table(rows)
}

func checkTable() string {
	var names []cluster.Check
	for c := range cluster.Checks() {
		names = append(names, c)
	}
	slices.SortFunc(names, func(a, b cluster.Check) int {
		return 10*int(cluster.Checks()[a]-cluster.Checks()[b]) + strings.Compare(string(a), string(b))
	})
	rows := [][]string{{"Check", "TTL", "A failure frees the leader lock"}}
	for _, c := range names {
		frees := "no"
		if slices.Contains(cluster.SessionChecks(), c) {
			frees = "yes, at once"
		}
		rows = append(rows, []string{"`" + string(c) + "`", seconds(cluster.Checks()[c]), frees})
	}
	return table(rows)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%g s", d.Seconds()) }

func optionTable() string {
	rows := [][]string{{"Option", "Default", "Values", "May be set for one node", "Effect"}}
	for _, o := range cluster.KnownOptions() {
		standard, perNode := "none", "no"
		if o.Default != "" {
			standard = "`" + o.Default + "`"
		}
		if o.PerNode {
			perNode = "yes"
		}
		rows = append(rows, []string{"`" + o.Name + "`", standard, o.Unit, perNode, o.Effect})
	}
	return table(rows)
}

// haproxySample is what 'understudy haproxy-config --port 80:8080' prints on the hosts of
// operations.md.
func haproxySample() string {
	d := config.Defaults()
	c := haproxy.Config{Cluster: "1a68782f7081dced", Bind: "*", Ports: []haproxy.Port{{Bind: 80, Node: 8080}}, Postgres: d.Postgres.Port, ReadOnly: d.Postgres.Port + 1}
	for i, name := range Members {
		c.Nodes = append(c.Nodes, cluster.Node{Name: name, Address: fmt.Sprintf("10.0.0.%d", i+1),
			Ports: cluster.Ports{API: d.APIPort(), Status: d.StatusPort(), Postgres: d.Postgres.Port}})
	}
	text, err := c.Full()
	if err != nil {
		text = err.Error()
	}
	return "```haproxy\n" + text + "```\n"
}

// doors say of each port what config.Ports does not: the protocol, who connects, by
// which setting it is chosen, who gets in, and what everybody else gets.
var doors = map[string]struct{ protocol, who, what, set, in, out string }{
	config.PortPostgres: {"TCP", "clients, the other nodes", "PostgreSQL", "`postgres.port`",
		"as `" + pgrepl.ReplicaRole + "`, which replicates, the certificate of a manager; as `" + pgrepl.AdminRole + "` nobody; clients as your `pg_hba.conf` says, while the node lets clients in",
		"no session"},
	config.PortStatus: {"TCP, plain HTTP", "load balancers", "`/status`", "`status.listen`",
		"whoever reaches it, to read what the node is; with `status.basic_auth_file` whoever has the password",
		"nothing here changes anything; 401 without that password"},
	config.PortAPI: {"TCP, HTTPS", "the other nodes, hosts that join", "API", "`api.listen`",
		"a present member, by its certificate; runners do not vote. Without one: `join`, with a token, and what the port of `/status` shows",
		"403; with a certificate of another CA no connection"},
	config.PortConsulServer: {"TCP, mTLS", "the other nodes", "Consul's servers", "fixed",
		"a certificate of the cluster's CA; for Raft that of a manager", "no connection"},
	config.PortConsulGossip: {"TCP and UDP, encrypted", "the other nodes", "Consul's gossip", "fixed",
		"who has the gossip key", "no answer"},
	config.PortConsulAPI: {"TCP, mTLS", "this host's daemons", "Consul's API", "fixed",
		"programs of this host, with a certificate of the cluster's CA, for what [their token](#consul) allows", "no connection; without a token 403"},
	config.PortConsulDNS: {"UDP and TCP", "this host's programs", "Consul's DNS", "fixed",
		"programs of this host, to read names and addresses of members", "names outside of `consul` are refused"},
	config.PortSyncthing: {"TCP, mTLS", "the other nodes", "Syncthing", "fixed",
		"the certificate that a present member has now", "no connection; one of the cluster's CA that is no member's: no folder"},
}

// nodesAddress is that of no node, in place of which tables say what it is.
const nodesAddress = "the node's address"

func listensOn(p config.Port) string {
	host, _, _ := net.SplitHostPort(p.On(nodesAddress))
	if p.Of == config.PortPostgres {
		return host + " and 127.0.0.1"
	}
	return host
}

func portTable() string {
	rows := [][]string{{"Port", "Protocol", "Listens on", "Who connects", "What", "Set by"}}
	for _, p := range config.Defaults().Ports() {
		d := doors[p.Of]
		rows = append(rows, []string{fmt.Sprint(p.Number), d.protocol, listensOn(p), d.who, d.what, d.set})
	}
	return table(rows)
}

// doorTable is also what e2e.TestPorts reads, knocks on, and compares with what is open.
func doorTable() string {
	rows := [][]string{{"Port", "Protocol", "Listens on", "What", "Who gets in", "Everybody else"}}
	for _, p := range config.Defaults().Ports() {
		d := doors[p.Of]
		rows = append(rows, []string{fmt.Sprint(p.Number), d.protocol, listensOn(p), d.what, d.in, d.out})
	}
	l, d := config.Paths("/"), config.Defaults()
	socket := fmt.Sprintf("/.s.PGSQL.%d`", d.Postgres.Port)
	return table(append(rows,
		[]string{"`" + l.Helper() + "`", "Unix socket", "", "postgres-helper", "the user `understudy`, and root", "no connection"},
		[]string{"`" + filepath.Join(l.Run, "postgresql") + socket, "Unix socket", "", "PostgreSQL, for the daemons",
			"as `" + pgrepl.AdminRole + "` the users `understudy`, `" + d.Postgres.User + "` and root; clients as on its port", "no session"},
		[]string{"`/run/postgresql" + socket, "Unix socket", "", "PostgreSQL, for the host's own programs", "the same", "no session"},
	))
}

// table writes Markdown. The first row is the heading.
func table(rows [][]string) string {
	var b strings.Builder
	for i, r := range rows {
		fmt.Fprintf(&b, "| %s |\n", strings.ReplaceAll(strings.Join(r, "\x00"), "\x00", " | "))
		if i == 0 {
			fmt.Fprintf(&b, "|%s\n", strings.Repeat("---|", len(r)))
		}
	}
	return b.String()
}
