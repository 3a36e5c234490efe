package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/dev"
)

// joinRefuses runs on three hosts: node1 and node2 are clusters of their own,
// node3 is to join the one of node1.
func joinRefuses(t *testing.T, g *group) {
	n := g.node(t, "node3")
	good := g.token(t, "node1")
	refused := func(t *testing.T, r result, code int, words ...string) {
		t.Helper()
		want(t, r, code, words...)
		untouched := config.Paths(n.Root)
		if _, err := os.Stat(untouched.ConsulConfig()); err == nil {
			t.Errorf("%s was made", untouched.ConsulConfig())
		}
		if nodes := ask[[]struct{ Name string }](t, g, "node1", "nodes", "list"); len(nodes) != 1 {
			t.Errorf("the members are %v", nodes)
		}
	}
	joinRefusesWords(t, g, n, good, refused)
	joinRefusesTokens(t, g, refused)
	joinRefusesHosts(t, g, n, good, refused)
}

// refusal checks that a join was refused, in which words, and that nothing is left
// of it.
type refusal func(t *testing.T, r result, code int, words ...string)

func joinRefusesWords(t *testing.T, g *group, n dev.NodeInfo, good string, refused refusal) {
	t.Run("no token", func(t *testing.T) { refused(t, g.cluster(t, "node3", "join", "127.40.3.11"), 2, "--token") })
	t.Run("no address", func(t *testing.T) { refused(t, g.cluster(t, "node3", "join", "--token", good), 2, "ADDRESS") })
	t.Run("a hostname as address", func(t *testing.T) {
		refused(t, g.cluster(t, "node3", "join", "--cluster-host-ip", n.Address, "--token", good, "localhost"), 2, "ADDRESS", "localhost")
	})
	t.Run("another kind", func(t *testing.T) {
		refused(t, g.join(t, "node3", good, "node1", "--kind", "walker"), 2, "--kind", "walker")
	})
	t.Run("an option of the cluster", func(t *testing.T) {
		refused(t, g.join(t, "node3", good, "node1", "--options", "sync_mode=strict"), 2, "sync_mode", "whole cluster")
	})
	t.Run("a mistyped token", func(t *testing.T) {
		other := "a"
		if good[10] == 'a' {
			other = "b"
		}
		refused(t, g.join(t, "node3", good[:10]+other+good[11:], "node1"), 2, "not a join token")
		refused(t, g.join(t, "node3", good[1:], "node1"), 2, "not a join token")
	})
}

func joinRefusesTokens(t *testing.T, g *group, refused refusal) {
	t.Run("a token of another cluster", func(t *testing.T) {
		refused(t, g.join(t, "node3", g.token(t, "node2"), "node1"), 1, "ask to be let in", "the cluster's CA is not the one that the token was made for", "token create")
	})
	t.Run("an expired token", func(t *testing.T) {
		token := g.token(t, "node1", "--ttl", "1ms")
		refused(t, g.join(t, "node3", token, "node1"), 1, "join token has expired", "token create")
	})
	t.Run("a token for another node", func(t *testing.T) {
		token := g.token(t, "node1", "--node", "node9")
		refused(t, g.join(t, "node3", token, "node1"), 1, "join token is for another node or kind: node node9")
	})
	t.Run("a token for runners", func(t *testing.T) {
		token := g.token(t, "node1", "--kind", "runner")
		refused(t, g.join(t, "node3", token, "node1"), 1, "join token is for another node or kind: kind runner")
	})
	t.Run("a revoked token", func(t *testing.T) {
		made := ask[struct{ ID, Token string }](t, g, "node1", "token", "create")
		want(t, g.cluster(t, "node1", "token", "revoke", made.ID), 0, made.ID)
		refused(t, g.join(t, "node3", made.Token, "node1"), 1, "unknown join token")
		want(t, g.cluster(t, "node1", "token", "revoke", made.ID), 1, "unknown join token")
	})
}

func joinRefusesHosts(t *testing.T, g *group, n dev.NodeInfo, good string, refused refusal) {
	t.Run("a name in use", func(t *testing.T) {
		refused(t, g.join(t, "node3", good, "node1", "--cluster-node-name", "node1"), 1, "node1", "--cluster-node-name")
	})
	t.Run("nobody there", func(t *testing.T) {
		refused(t, g.cluster(t, "node3", append(g.joinArgs(t, "node3", good, "node1")[:7], "127.40.3.99")...), 1, "127.40.3.99:8009", "connection refused")
	})
	t.Run("another understudy", func(t *testing.T) {
		old := filepath.Join(scratch, "old-understudy")
		if err := build(old, "cmd/understudy", "v0.0.1"); err != nil {
			t.Fatal(err)
		}
		args := append([]string{"--root", n.Root, "cluster"}, g.joinArgs(t, "node3", good, "node1")...)
		refused(t, understudy(t, old, args...), 1, "the cluster runs understudy test, this host v0.0.1", "install the same version")
	})
	t.Run("another PostgreSQL", func(t *testing.T) {
		otherMajor(t, g, n, func(r result) { refused(t, r, 1, "PostgreSQL 15, this host 16") })
	})
	t.Run("files in a folder", func(t *testing.T) {
		file := filepath.Join(n.Folders[0], "letter.txt")
		if err := os.WriteFile(file, []byte("dear"), 0o644); err != nil {
			t.Fatal(err)
		}
		refused(t, g.join(t, "node3", good, "node1"), 1, "this host is not empty", file)
		if text, err := os.ReadFile(file); err != nil || string(text) != "dear" {
			t.Errorf("the file is %q, %v", text, err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a table in the database", func(t *testing.T) {
		sql(t, n, "create table letters as select 'dear' as text")
		refused(t, g.join(t, "node3", good, "node1"), 1, "this host is not empty", "public.letters")
		sql(t, n, "do $$ begin if (select text from letters) <> 'dear' then raise 'lost'; end if; end $$")
		sql(t, n, "drop table letters")
		sql(t, n, "create database mail")
		refused(t, g.join(t, "node3", good, "node1"), 1, "this host is not empty", "database mail")
		sql(t, n, "drop database mail")
	})
	t.Run("a start that was refused does not stand in the way", func(t *testing.T) {
		withConfig(t, n, func(text string) string { return replaceLine(text, "bin_dir:", "  bin_dir: /nonexistent") }, func() {
			refused(t, g.start(t, "node3"), 1, "is missing")
		})
	})
}

// otherMajor lets a host seem to have PostgreSQL 16.
func otherMajor(t *testing.T, g *group, n dev.NodeInfo, joins func(result)) {
	real, err := dev.FindBinaries(bin)
	if err != nil {
		t.Fatal(err)
	}
	fake := filepath.Join(scratch, "postgres16")
	if err := os.MkdirAll(fake, 0o755); err != nil {
		t.Fatal(err)
	}
	programs, err := os.ReadDir(real.PostgresBin)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		if p.Name() == "postgres" {
			script := "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'postgres (PostgreSQL) 16.1'; else exec " + filepath.Join(real.PostgresBin, "postgres") + " \"$@\"; fi\n"
			err = os.WriteFile(filepath.Join(fake, "postgres"), []byte(script), 0o755)
		} else {
			err = os.Symlink(filepath.Join(real.PostgresBin, p.Name()), filepath.Join(fake, p.Name()))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// The server runs, and has read its own version long ago.
	version := filepath.Join(n.Postgres.DataDir, "PG_VERSION")
	if err := os.WriteFile(version, []byte("16\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(version, []byte("15\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}()
	withConfig(t, n, func(text string) string { return replaceLine(text, "bin_dir:", "  bin_dir: "+fake) }, func() {
		joins(g.join(t, n.Name, g.token(t, "node1"), "node1"))
	})
}
