package e2e

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/pgrepl"
)

// A cluster gets a new CA under a writer, by a command that is killed on the way and
// repeated. Nothing of the old one gets in afterwards.
func TestNewCA(t *testing.T) {
	t.Parallel()
	g := up(t, "ca", "127.40.36.11", 2, "--runners", "1")
	g.healthy(t, "node1", 3)
	all := []string{"node1", "node2", "runner1"}
	was, token, before := g.cas(t, "node1"), g.token(t, "node1"), g.valid(t, "node1")
	old := g.copied(t, "node2")

	g.must(t, "kill", "runner1")
	want(t, g.command(t, "node1", "certs", "rotate", "--ca"), 1, "runner1 does not answer", "nodes remove runner1")
	g.must(t, "start", "runner1")
	epoch := g.healthy(t, "node1", 3).Epoch
	if now := g.cas(t, "node1"); fmt.Sprint(now) != fmt.Sprint(was) {
		t.Errorf("the CAs were %v, and are %v", was, now)
	}
	want(t, g.command(t, "runner1", "certs", "rotate", "--ca"), 1, "is a runner", "use a manager")
	want(t, g.command(t, "node1", "certs", "rotate", "--ca", "node2"), 2, "neither a name")

	var begun []certs.Info // by the first attempt
	after := g.underWrites(t, func() {
		g.breaksOff(t, "node1", "node1 trusts both CAs", "certs", "rotate", "--ca")
		if begun = g.cas(t, "node1"); len(begun) != 2 {
			t.Fatalf("after the attempt that broke off the CAs are %v", begun)
		}
		want(t, g.command(t, "node1", "certs", "show"), 0, "(CA)", "(other CA)")
		lines := []string{"The cluster has a new CA", "tokens that were made before are good no more"}
		for _, name := range all {
			lines = append(lines, name+" trusts both CAs", name+" has a new certificate", name+" trusts the new CA alone")
		}
		want(t, g.command(t, "node1", "certs", "rotate", "--ca"), 0, lines...)
	})
	if after.Epoch != epoch {
		t.Errorf("epoch %d, then %d", epoch, after.Epoch)
	}
	g.healthy(t, "node1", 3)
	now := g.valid(t, "node1")
	for _, name := range all {
		cas := g.cas(t, name)
		if len(cas) != 1 || cas[0].Fingerprint == was[0].Fingerprint || !slices.Contains(begun, cas[0]) {
			t.Errorf("%s trusts %v", name, cas)
		}
		if now[name].Fingerprint == before[name].Fingerprint {
			t.Errorf("%s has the certificate that it had", name)
		}
	}
	for _, node := range []string{"node1", "node2"} {
		g.shows(t, node, now[node].Fingerprint)
		g.refuses(t, node, old)
	}
	_, _, pin, err1 := certs.DecodeToken(token)
	_, _, newPin, err2 := certs.DecodeToken(g.token(t, "node2"))
	if err1 != nil || err2 != nil || pin == newPin {
		t.Errorf("the token made before has the pin %s, a new one %s; %v, %v", pin, newPin, err1, err2)
	}
	// Everything connects anew.
	want(t, g.cluster(t, "node1", "set-active", "node2"), 0)
	g.healthy(t, "node2", 3)
	g.write(t, "node2", "later.txt", "by the new CA")
	g.arrives(t, "later.txt", "by the new CA", "node1")
}

// cas are the CAs that a node trusts.
func (g *group) cas(t *testing.T, node string) []certs.Info {
	t.Helper()
	has, err := certs.Dir(config.Paths(g.node(t, node).Root).SSL).Info()
	if err != nil {
		t.Fatal(err)
	}
	return has.CAs
}

// copied is what a thief has who took the certificate and the key of a node.
func (g *group) copied(t *testing.T, node string) tls.Certificate {
	t.Helper()
	pair, err := certs.Dir(config.Paths(g.node(t, node).Root).SSL).Pair()
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// refuses waits until no server of a node takes a certificate any more.
func (g *group) refuses(t *testing.T, node string, cert tls.Certificate) {
	t.Helper()
	n := g.node(t, node)
	conf := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"bep/1.0", "http/1.1"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }}
	shows := func(port string, first ...byte) error {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(n.Address, port), patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := conn.Write(first); err != nil {
			return err
		}
		_, err = tls.Client(conn, conf).Read(make([]byte, 1))
		return err
	}
	plain := conf.Clone()
	plain.NextProtos = nil
	for what, knock := range map[string]func() error{
		"the API":          func() error { return shows("8009") },
		"Consul":           func() error { return shows("8500") },
		"Consul's servers": func() error { return shows("8300", consulTLS) },
		"Syncthing":        func() error { return shows("22000") },
		"PostgreSQL": func() error {
			return session(t, net.JoinHostPort(n.Address, "5432"), plain, pgrepl.ReplicaRole, "true")
		},
	} {
		eventually(t, what+" of "+node+" refuses what the old CA signed", func() error {
			err := knock()
			if err == nil || !strings.Contains(err.Error(), certUnknown) && !strings.Contains(err.Error(), certBad) {
				return fmt.Errorf("%v", err)
			}
			return nil
		})
	}
}

// breaksOff runs a command and kills it when it says something.
func (g *group) breaksOff(t *testing.T, node, says string, args ...string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), filepath.Join(bin, "understudy"), append([]string{"--root", filepath.Join(g.dir, node)}, args...)...)
	command.Stderr = os.Stderr
	said, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	seen := false
	for lines := bufio.NewScanner(said); !seen && lines.Scan(); {
		seen = strings.Contains(lines.Text(), says)
	}
	_ = command.Process.Kill()
	_ = command.Wait()
	if !seen {
		t.Fatalf("it did not say %q", says)
	}
}
