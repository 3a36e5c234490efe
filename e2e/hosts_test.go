package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/services"
)

// TestHosts gives start and join what they must refuse. After each refusal the
// host is as it was, so that the right command goes through in the end.
func TestHosts(t *testing.T) {
	t.Parallel()
	g := hosts(t, "h", "127.40.3.", 4)
	t.Run("start refuses", func(t *testing.T) { startRefuses(t, g) })
	want(t, g.start(t, "node1"), 0, "is the active node of cluster")
	g.healthy(t, "node1", 1)
	t.Run("start at the same time", func(t *testing.T) { startTogether(t, g, "node2") })
	g.healthy(t, "node2", 1)
	t.Run("start twice", func(t *testing.T) {
		want(t, g.start(t, "node1"), 1, "already a member of a cluster: it is node1")
		want(t, g.join(t, "node1", g.token(t, "node2"), "node2"), 1, "already a member of a cluster: it is node1")
		g.healthy(t, "node1", 1)
	})
	t.Run("join refuses", func(t *testing.T) { joinRefuses(t, g) })
	token := g.token(t, "node1")
	want(t, g.join(t, "node3", token, "node1"), 0, "node3 is a standby of cluster")
	g.healthy(t, "node3", 2)
	t.Run("a used token", func(t *testing.T) {
		want(t, g.join(t, "node4", token, "node3"), 1, "join token is used up by node node3", "token create")
		want(t, g.cluster(t, "node1", "token", "list"), 0, "used by node3")
	})
	t.Run("a full disk", func(t *testing.T) { fullDisk(t, g) })
}

// startTogether runs a second start while a first one is at work.
func startTogether(t *testing.T, g *group, node string) {
	first := make(chan result)
	go func() { first <- g.start(t, node) }()
	record := config.Paths(filepath.Join(g.dir, node)).Membership()
	eventually(t, "the first start has begun", func() error {
		_, err := os.Stat(record)
		return err
	})
	second := g.start(t, node)
	r := <-first
	want(t, r, 0, node+" is the active node of cluster")
	if second.code != 1 || !strings.Contains(second.err, "is at work on this host") && !strings.Contains(second.err, "already a member") {
		t.Error(second)
	}
}

// without checks that the cluster works although a node is not there yet.
func (g *group) without(t *testing.T, from, missing string) {
	t.Helper()
	for _, n := range ask[[]nodeJSON](t, g, from, "nodes", "list") {
		if n.Name == missing && n.State == "offline" || n.State == "leader" || n.State == "standby" {
			continue
		}
		t.Errorf("%s is %s", n.Name, n.State)
	}
}

// start runs cluster start on a host, under its own name.
func (g *group) start(t *testing.T, node string, more ...string) result {
	t.Helper()
	return g.cluster(t, node, append([]string{"start", "--cluster-host-ip", g.address(t, node), "--cluster-node-name", node}, more...)...)
}

// join runs cluster join on a host, under its own name.
func (g *group) join(t *testing.T, node, token, contact string, more ...string) result {
	t.Helper()
	return g.cluster(t, node, g.joinArgs(t, node, token, contact, more...)...)
}

func (g *group) joinArgs(t *testing.T, node, token, contact string, more ...string) []string {
	t.Helper()
	args := []string{"join", "--cluster-host-ip", g.address(t, node), "--cluster-node-name", node, "--token", token}
	return append(append(args, more...), g.address(t, contact))
}

func (g *group) address(t *testing.T, node string) string {
	t.Helper()
	for _, n := range g.nodes {
		if n.Name == node {
			return n.Address
		}
	}
	t.Fatalf("there is no node %s", node)
	return ""
}

// token makes a join token on a member.
func (g *group) token(t *testing.T, on string, more ...string) string {
	t.Helper()
	made := ask[struct{ Token string }](t, g, on, append([]string{"token", "create"}, more...)...)
	if made.Token == "" {
		t.Fatal("the token is empty")
	}
	return made.Token
}

func startRefuses(t *testing.T, g *group) {
	n := g.node(t, "node1")
	for name, c := range map[string]struct {
		args  []string
		words []string
	}{
		"a hostname":          {[]string{"--cluster-host-ip", "localhost"}, []string{"--cluster-host-ip", "localhost", "IP address"}},
		"a bad name":          {[]string{"--cluster-host-ip", n.Address, "--cluster-node-name", "Node 1"}, []string{"--cluster-node-name", "Node 1"}},
		"no address":          {nil, []string{"--cluster-host-ip"}},
		"an unknown option":   {[]string{"--cluster-host-ip", n.Address, "--options", "sync_mod=strict"}, []string{`unknown option "sync_mod"`}},
		"a bad value":         {[]string{"--cluster-host-ip", n.Address, "--options", "sync_mode=always"}, []string{"sync_mode", `"always"`, "strict, available or async"}},
		"an unknown flag":     {[]string{"--cluster-ip", n.Address}, []string{"cluster-ip"}},
		"an argument":         {[]string{"--cluster-host-ip", n.Address, "now"}, []string{"1 arguments given, 0 wanted"}},
		"a late unknown flag": {[]string{"now", "--fast"}, []string{"--fast"}},
	} {
		t.Run(name, func(t *testing.T) {
			want(t, g.cluster(t, "node1", append([]string{"start"}, c.args...)...), 2, c.words...)
			untouched(t, n)
		})
	}
	t.Run("not a member", func(t *testing.T) {
		for _, line := range []string{"nodes list", "status", "token list", "options list", "options log", "options rollback", "set-active node1", "events"} {
			want(t, g.cluster(t, "node1", strings.Fields(line)...), 1, "not a member of a cluster", "cluster start", "cluster join")
		}
	})
	t.Run("a malformed configuration", func(t *testing.T) {
		withConfig(t, n, func(text string) string { return strings.Replace(text, "\nstatus:\n", "\nstatus:\n  listne: x\n", 1) }, func() {
			want(t, g.start(t, "node1"), 1, "understudy.yaml", "listne", "unknown field", lineOf(t, n, "listne"))
		})
		withConfig(t, n, func(text string) string { return strings.Replace(text, "  port: 5432", "  port: many", 1) }, func() {
			want(t, g.start(t, "node1"), 1, "understudy.yaml", "port: many", lineOf(t, n, "port: many"))
		})
		withConfig(t, n, func(text string) string { return strings.Replace(text, "manager: exec", "manager: upstart", 1) }, func() {
			want(t, g.start(t, "node1"), 1, "understudy.yaml", "services.manager", "upstart")
		})
	})
	t.Run("no PostgreSQL", func(t *testing.T) {
		withConfig(t, n, func(text string) string { return replaceLine(text, "bin_dir:", "  bin_dir: /nonexistent") }, func() {
			want(t, g.start(t, "node1"), 1, "/nonexistent/postgres is missing", "/nonexistent/pg_rewind is missing", "bin_dir")
			untouched(t, n)
		})
	})
	t.Run("a data directory of others", func(t *testing.T) {
		dir := n.Postgres.DataDir
		change := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		change(os.Chmod(dir, 0o755))
		want(t, g.start(t, "node1"), 1, dir+" has the mode 0755", "chmod 0700 "+dir)
		change(os.Chmod(dir, 0o700))
		untouched(t, n)
		if os.Geteuid() != 0 {
			return // only root can give files away
		}
		owned, err := os.Stat(dir)
		change(err)
		is, file := owned.Sys().(*syscall.Stat_t), filepath.Join(dir, "PG_VERSION")
		change(os.Chown(file, 0, 0))
		want(t, g.start(t, "node1"), 1, file+" belongs to root", "chown -R ")
		change(os.Chown(file, int(is.Uid), int(is.Gid)))
		untouched(t, n)
	})
	t.Run("a port in use", func(t *testing.T) {
		for what, port := range map[string]string{"/status": "8008", "the API": "8009", "Consul's API": "8500", "Syncthing": "22000"} {
			l, err := net.Listen("tcp", net.JoinHostPort(n.Address, port))
			if err != nil {
				t.Fatal(err)
			}
			want(t, g.start(t, "node1"), 1, what+" cannot listen on "+n.Address+":"+port, "in use", "end what listens there")
			untouched(t, n)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("PostgreSQL's port in use", func(t *testing.T) {
		if err := services.NewExec(config.Paths(n.Root).InitSocket()).Stop(t.Context(), dev.PostgresUnit); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", net.JoinHostPort(n.Address, "5432"))
		if err != nil {
			t.Fatal(err)
		}
		want(t, g.start(t, "node1"), 1, "PostgreSQL cannot listen on "+n.Address+":5432", "in use", "end what listens there")
		untouched(t, n)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// untouched checks that a refused command has left nothing of a cluster.
func untouched(t *testing.T, n dev.NodeInfo) {
	t.Helper()
	l := config.Paths(n.Root)
	for _, file := range []string{l.Membership(), l.ConsulConfig(), filepath.Join(l.SSL, "ca.crt"), n.Postgres.DataDir + ".complete"} {
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s was made", file)
		}
	}
}

// withConfig changes a host's understudy.yaml for a while.
func withConfig(t *testing.T, n dev.NodeInfo, change func(string) string, do func()) {
	t.Helper()
	file := config.Paths(n.Root).Config
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := change(string(old))
	if changed == string(old) {
		t.Fatalf("nothing was changed in\n%s", old)
	}
	if err := os.WriteFile(file, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(file, old, 0o644); err != nil {
			t.Fatal(err)
		}
	}()
	do()
}

// lineOf returns "[N:", as an error begins that is about the line with a word.
func lineOf(t *testing.T, n dev.NodeInfo, word string) string {
	t.Helper()
	text, err := os.ReadFile(config.Paths(n.Root).Config)
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(string(text), "\n") {
		if strings.Contains(line, word) {
			return fmt.Sprintf("[%d:", i+1)
		}
	}
	t.Fatalf("no line with %q in\n%s", word, text)
	return ""
}

func replaceLine(text, key, with string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(strings.TrimSpace(line), key) {
			lines[i] = with
		}
	}
	return strings.Join(lines, "\n")
}

// sql runs statements on a host's database, once it lets clients in.
func sql(t *testing.T, n dev.NodeInfo, statements ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	var conn *pgx.Conn
	eventually(t, n.Name+" lets clients in", func() (err error) {
		conn, err = pgx.Connect(ctx, n.Postgres.DSN+"?sslmode=disable")
		return err
	})
	defer func() { _ = conn.Close(ctx) }()
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}
