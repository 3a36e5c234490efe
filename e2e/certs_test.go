package e2e

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/config"
)

// Certificates are replaced under a running cluster, and one whose certificates have
// all expired is revived.
func TestCertificates(t *testing.T) {
	t.Parallel()
	g := hosts(t, "ce", "127.40.22.", 2)
	want(t, g.start(t, "node1"), 0, "is the active node of cluster")
	g.healthy(t, "node1", 1)
	want(t, g.join(t, "node2", g.token(t, "node1"), "node1"), 0, "node2 is a standby of cluster")
	before := g.healthy(t, "node1", 2)
	was := g.valid(t, "node1")
	after := g.underWrites(t, func() {
		want(t, g.command(t, "node2", "certs", "rotate"), 0, "node1 has a new certificate", "node2 has a new certificate")
	})
	if after.Epoch != before.Epoch {
		t.Errorf("epoch %d, then %d", before.Epoch, after.Epoch)
	}
	now := g.valid(t, "node2")
	for node, c := range now {
		if old := was[node]; (node != "") == (c.Fingerprint == old.Fingerprint) {
			t.Errorf("%q had %s, and has %s", node, old.Fingerprint, c.Fingerprint)
		}
	}
	for _, node := range []string{"node1", "node2"} {
		g.shows(t, node, now[node].Fingerprint)
	}
	g.write(t, "node1", "later.txt", "with new certificates")
	g.arrives(t, "later.txt", "with new certificates", "node2")
	want(t, g.command(t, "node1", "certs", "rotate", "node7"), 1, "node7 is not a member")

	both := []string{"node1", "node2"}
	for _, node := range both {
		g.must(t, "kill", node)
	}
	for _, node := range both {
		g.expire(t, node)
		want(t, g.command(t, node, "certs", "show"), 0, "EXPIRED", "The certificate of "+node+" expired on", "certs rotate --offline", "the other members are not known")
	}
	for _, node := range both {
		g.must(t, "start", node)
	}
	g.healthy(t, "node1", 2) // each has signed its own
	was = g.valid(t, "node1")
	want(t, g.command(t, "node2", "certs", "rotate", "--offline"), 0, "node2 has a new certificate")
	g.healthy(t, "node1", 2)
	if now := g.valid(t, "node1"); now["node2"].Fingerprint == was["node2"].Fingerprint {
		t.Error("the certificate of node2 is the old one")
	}
	g.spoilt(t, "node2")
	g.healthy(t, "node1", 2)
}

// spoilt gives a node half of a certificate: what runs goes on with the old one, and
// what starts says what to do.
func (g *group) spoilt(t *testing.T, node string) {
	t.Helper()
	n := g.node(t, node)
	file := certs.Dir(config.Paths(n.Root).SSL).CertFile()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text[:len(text)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	words := []string{file, "'sudo understudy certs rotate --offline' makes a new one"}
	want(t, g.cluster(t, node, "status"), 1, words...)
	g.healthy(t, "node1", 2)
	g.must(t, "kill", node, "handler-runner")
	eventually(t, "handler-runner says so", func() error {
		for _, w := range words {
			if !strings.Contains(g.must(t, "logs", "--lines", "40", node), w) {
				return fmt.Errorf("it does not say %q", w)
			}
		}
		return nil
	})
	want(t, g.command(t, node, "certs", "rotate", "--offline"), 0, node+" has a new certificate")
}

// command runs understudy on a node as an operator would.
func (g *group) command(t *testing.T, node string, args ...string) result {
	t.Helper()
	return understudy(t, filepath.Join(bin, "understudy"), append([]string{"--root", filepath.Join(g.dir, node)}, args...)...)
}

// valid is what a node tells of all certificates, by node; the CA's is that of "".
func (g *group) valid(t *testing.T, from string) map[string]certs.Info {
	t.Helper()
	r := g.command(t, from, "certs", "show", "--json")
	want(t, r, 0)
	var rows []struct {
		Node        string
		Certificate certs.Info
	}
	if err := json.Unmarshal([]byte(r.out), &rows); err != nil {
		t.Fatal(err)
	}
	all := map[string]certs.Info{}
	for _, row := range rows {
		all[row.Node] = row.Certificate
	}
	if !all["node1"].NotAfter.After(time.Now()) || all[""].Fingerprint == "" {
		t.Errorf("%+v", rows)
	}
	return all
}

// shows waits until whatever of a node has a certificate shows this one.
func (g *group) shows(t *testing.T, node, fingerprint string) {
	t.Helper()
	n := g.node(t, node)
	dir := certs.Dir(config.Paths(n.Root).SSL)
	conf, err := dir.ClientTLS(n.Address)
	if err != nil {
		t.Fatal(err)
	}
	same := func(shown []*x509.Certificate) error {
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: shown[0].Raw})
		if got, err := certs.Fingerprint(text); err != nil || got != fingerprint {
			return fmt.Errorf("it shows %s, want %s: %v", got, fingerprint, err)
		}
		return nil
	}
	for what, address := range map[string]string{"the API": n.APIURL, "Consul": n.ConsulURL} {
		eventually(t, what+" of "+node+" shows it", func() error {
			c, err := tls.Dial("tcp", strings.TrimPrefix(address, "https://"), conf)
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			return same(c.ConnectionState().PeerCertificates)
		})
	}
	eventually(t, "PostgreSQL of "+node+" shows it", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		pg, err := pgx.ParseConfig(n.Postgres.DSN + "?sslmode=require")
		if err != nil {
			return err
		}
		pg.Fallbacks = nil
		c, err := pgx.ConnectConfig(ctx, pg)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close(ctx) }()
		return same(c.PgConn().Conn().(*tls.Conn).ConnectionState().PeerCertificates)
	})
}

// expire gives a node a certificate that was valid until a minute ago.
func (g *group) expire(t *testing.T, node string) {
	t.Helper()
	dir := certs.Dir(config.Paths(g.node(t, node).Root).SSL)
	is := func(file string) []byte {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		return block.Bytes
	}
	own, err1 := x509.ParseCertificate(is(dir.CertFile()))
	ca, err2 := x509.ParseCertificate(is(dir.CAFile()))
	key, err3 := x509.ParsePKCS8PrivateKey(is(dir.CAKeyFile()))
	if err1 != nil || err2 != nil || err3 != nil {
		t.Fatal(err1, err2, err3)
	}
	own.NotBefore, own.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
	der, err := x509.CreateCertificate(rand.Reader, own, ca, own.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir.CertFile(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
}
