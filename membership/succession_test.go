package membership

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/node"
)

// members are nodes that do what they are told, until a call of them is to fail.
type members struct {
	t     *testing.T
	nodes map[string]cluster.Node
	dirs  map[string]certs.Dir

	calls  int
	failAt int  // this call fails; 0: none
	done   bool // after it has had its effect
	away   string
	each   func() // after each call
}

var errBroken = errors.New("the connection broke")

func newMembers(t *testing.T) *members {
	m := &members{t: t, nodes: map[string]cluster.Node{}, dirs: map[string]certs.Dir{}}
	first := certs.Dir(filepath.Join(t.TempDir(), "n1"))
	must(t, first.NewCA("c1"))
	m.dirs["n1"] = first
	m.admit("n1", cluster.Manager)
	m.admit("n2", cluster.Manager)
	m.admit("r1", cluster.Runner)
	return m
}

// admit lets a node in, as n1 does.
func (m *members) admit(name string, kind cluster.Kind) {
	m.t.Helper()
	d, by := certs.Dir(filepath.Join(m.t.TempDir(), name)), m.dirs["n1"]
	if name == "n1" {
		d = by
	}
	m.dirs[name] = d
	m.nodes[name] = cluster.Node{Name: name, Kind: kind, Address: fmt.Sprintf("127.0.0.%d", 10+len(m.nodes))}
	must(m.t, m.sign(by, name))
	if kind == cluster.Manager && name != "n1" {
		key, err := by.CAKey()
		must(m.t, err)
		must(m.t, d.InstallCAKey(key))
	}
}

// sign gives a node a certificate. A newcomer gets the CAs of who signs it.
func (m *members) sign(by certs.Dir, name string) error {
	n, d := m.nodes[name], m.dirs[name]
	csr, err := d.Request(name, n.Address)
	must(m.t, err)
	cert, err := by.Sign(csr, name, n.Address, n.Kind)
	if err != nil {
		return err
	}
	cas, err := d.CA()
	if errors.Is(err, os.ErrNotExist) {
		cas, err = by.CA()
	}
	must(m.t, err)
	return d.Install(cas, cert)
}

func (m *members) call(n cluster.Node, do func(certs.Dir) error) error {
	m.calls++
	if n.Name == m.away || m.calls == m.failAt && !m.done {
		return errBroken
	}
	err := do(m.dirs[n.Name])
	if m.each != nil {
		m.each()
	}
	if m.calls == m.failAt {
		return errBroken
	}
	return err
}

func (m *members) Certificates(_ context.Context, n cluster.Node, out any) error {
	return m.call(n, func(d certs.Dir) (err error) { *out.(*certs.Trusted), err = d.Info(); return err })
}

func (m *members) Trust(_ context.Context, n cluster.Node, cas, key []byte) error {
	if n.Kind == cluster.Runner && key != nil {
		m.t.Errorf("the runner %s is sent the key of a CA", n.Name)
	}
	return m.call(n, func(d certs.Dir) error { return d.Trust(cas, key) })
}

func (m *members) Renew(_ context.Context, n cluster.Node, _ any) error {
	return m.call(n, func(d certs.Dir) error {
		if n.Kind == cluster.Runner {
			d = m.dirs["n2"]
		}
		return m.sign(d, n.Name)
	})
}

// run has a manager give the cluster a new CA.
func (m *members) run(from string) error {
	h := &node.Host{Certs: m.dirs[from], Record: node.Record{Node: m.nodes[from], Info: cluster.Info{ID: "c1"}}}
	return Succession{Host: h, Peers: m, Say: func(string) {},
		View: func(context.Context) (cluster.View, error) { return cluster.View{Nodes: maps.Clone(m.nodes)}, nil },
	}.Run(m.t.Context())
}

// believed fails unless every member believes every other, as it has to at any moment.
func (m *members) believed(where string) {
	m.t.Helper()
	for a, from := range m.dirs {
		text, err := from.Cert()
		must(m.t, err)
		block, _ := pem.Decode(text)
		cert, err := x509.ParseCertificate(block.Bytes)
		must(m.t, err)
		for b, by := range m.dirs {
			cas, err := by.CA()
			must(m.t, err)
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(cas)
			if _, err := cert.Verify(x509.VerifyOptions{Roots: roots}); err != nil {
				m.t.Errorf("%s: %s does not believe %s: %v", where, b, a, err)
			}
		}
	}
}

// ended fails unless all trust one CA alone, another than was, and managers sign by it.
func (m *members) ended(where string, was certs.Info) {
	m.t.Helper()
	var is string
	for name, d := range m.dirs {
		has, err := d.Info()
		must(m.t, err)
		if is == "" {
			is = has.CAs[0].Fingerprint
		}
		if len(has.CAs) != 1 || has.CAs[0].Fingerprint != is || has.Signer != is || is == was.Fingerprint {
			m.t.Errorf("%s: %s has %+v", where, name, has)
		}
		if _, err := os.Stat(d.NextCAKeyFile()); err == nil {
			m.t.Errorf("%s: %s still holds the key of a next CA", where, name)
		}
		if m.nodes[name].Kind == cluster.Manager {
			must(m.t, m.sign(d, name))
		}
	}
	m.believed(where)
}

func (m *members) ca() certs.Info {
	has, err := m.dirs["n1"].Info()
	must(m.t, err)
	return has.CAs[0]
}

// Wherever the command is broken off, all members believe each other then, and it can be
// repeated.
func TestSuccessionBrokenOffAnywhere(t *testing.T) {
	whole := newMembers(t)
	was := whole.ca()
	must(t, whole.run("n1"))
	whole.ended("without a failure", was)
	if whole.calls < 15 {
		t.Fatalf("only %d calls", whole.calls)
	}
	for at := 1; at <= whole.calls; at++ {
		for _, done := range []bool{false, true} {
			where := fmt.Sprintf("call %d fails, done %v", at, done)
			m := newMembers(t)
			was := m.ca()
			m.failAt, m.done = at, done
			m.each = func() { m.believed(where) }
			if err := m.run("n1"); !errors.Is(err, errBroken) {
				t.Errorf("%s: %v", where, err)
			}
			m.believed(where)
			m.failAt = 0
			if err := m.run("n1"); err != nil {
				t.Errorf("%s, repeated: %v", where, err)
			}
			m.ended(where, was)
		}
	}
}

// Who is let in while the CA is replaced has the new one in the end.
func TestSuccessionWithNewcomer(t *testing.T) {
	for at := 4; at <= 20; at++ {
		m := newMembers(t)
		was := m.ca()
		m.each = func() {
			if m.calls == at {
				m.admit("n3", cluster.Manager)
			}
		}
		if err := m.run("n1"); err != nil {
			t.Errorf("let in at call %d: %v", at, err)
		}
		m.ended(fmt.Sprintf("let in at call %d", at), was)
	}
}

func TestSuccessionRefuses(t *testing.T) {
	m := newMembers(t)
	was := m.ca()
	refused := func(from string, words ...string) {
		t.Helper()
		err := m.run(from)
		for _, w := range words {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("from %s: %v; want %q", from, err, w)
			}
		}
	}
	refused("r1", "r1 is a runner", "use a manager")
	m.away = "r1"
	refused("n1", "r1 does not answer", "nodes remove r1")
	m.away = ""
	if has, err := m.dirs["n1"].Info(); err != nil || !slices.Equal(has.CAs, []certs.Info{was}) {
		t.Errorf("something was changed: %+v, %v", has, err)
	}
	m.failAt, m.done, m.calls = 4, true, 0 // n1 trusts both, and nobody else
	refused("n1", errBroken.Error(), "repeat the command on n1")
	m.failAt = 0
	refused("n2", "begun from another manager", "repeat the command on n1")
	must(t, m.run("n1"))
	m.ended("repeated", was)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
