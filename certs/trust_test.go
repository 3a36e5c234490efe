package certs

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// manager is a node with the key of the CA.
func manager(t *testing.T, ca Dir, name, ip string) Dir {
	t.Helper()
	d := joined(t, ca, name, ip, time.Now())
	key, err := ca.CAKey()
	check(t, err)
	check(t, d.InstallCAKey(key))
	return d
}

// What a CA is replaced by, step by step, on the manager that it is begun on; after each
// step it is found again, and at each the two nodes believe each other.
func TestSuccession(t *testing.T) {
	ca := newCA(t)
	a, b := manager(t, ca, "n1", "127.0.0.2"), joined(t, ca, "n2", "127.0.0.3", time.Now())
	server, err := a.ServerTLS()
	check(t, err)
	client, err := b.ClientTLS("n1")
	check(t, err)
	meet := func(step string) {
		t.Helper()
		if peer, serverErr, clientErr := shake(t, server, client); peer != "n2" || serverErr != nil || clientErr != nil {
			t.Errorf("%s: %q, %v, %v", step, peer, serverErr, clientErr)
		}
	}
	was, err := a.Info()
	check(t, err)
	stolen := a.copyOf(t)

	s, err := a.Succession("c1")
	check(t, err)
	if s.Begun {
		t.Error("nothing was begun")
	}
	other, err := a.Succession("c1")
	check(t, err)
	if bytes.Equal(s.New, other.New) {
		t.Error("what was only looked at is kept")
	}
	both, next := slices.Concat(s.Old, s.New), slices.Concat(s.New, s.Old)
	for _, step := range []struct {
		name   string
		do     func() error
		signer string // of a's own certificate afterwards: the old CA, or the new one
		begun  bool
	}{
		{"a trusts both", func() error { return a.Trust(both, s.Key) }, "old", true},
		{"b trusts both", func() error { return b.Trust(both, nil) }, "old", true},
		{"a's certificate is renewed before", func() error { return reissue(t, a, a, "n1", "127.0.0.2") }, "old", true},
		{"the new one signs", func() error { return a.Trust(next, s.Key) }, "old", true},
		{"again", func() error { return a.Trust(next, s.Key) }, "old", true},
		{"b hears of it", func() error { return b.Trust(next, nil) }, "old", true},
		{"b's certificate", func() error { return reissue(t, a, b, "n2", "127.0.0.3") }, "old", true},
		{"a's certificate", func() error { return reissue(t, a, a, "n1", "127.0.0.2") }, "new", true},
		{"b trusts the new one alone", func() error { return b.Trust(s.New, nil) }, "new", true},
		{"a trusts the new one alone", func() error { return a.Trust(s.New, s.Key) }, "new", false},
	} {
		check(t, step.do())
		meet(step.name)
		has, err := a.Info()
		check(t, err)
		if (has.Signer == was.Signer) != (step.signer == "old") {
			t.Errorf("%s: a's is signed by %s", step.name, has.Signer)
		}
		found, err := a.Succession("c1")
		check(t, err)
		if found.Begun != step.begun || step.begun && !(bytes.Equal(found.New, s.New) && bytes.Equal(found.Old, s.Old) && bytes.Equal(found.Key, s.Key)) {
			t.Errorf("%s: it is not found again: begun %v", step.name, found.Begun)
		}
	}
	if _, err := os.Stat(a.NextCAKeyFile()); err == nil {
		t.Error("the key is there twice")
	}
	conf, err := stolen.ClientTLS("n1")
	check(t, err)
	conf.VerifyConnection = nil // the server must refuse
	if _, serverErr, _ := shake(t, server, conf); serverErr == nil {
		t.Error("what the old CA signed is believed")
	}
	if pin, err := a.Pin(); err != nil || pin == pinOfOnly(t, s.Old) {
		t.Errorf("tokens name the old CA: %v", err)
	}
}

// A node does not trust CAs that others would not believe it by, nor take a key that
// is none of theirs.
func TestTrustRefuses(t *testing.T) {
	ca := newCA(t)
	d := manager(t, ca, "n1", "127.0.0.2")
	s, err := d.Succession("c1")
	check(t, err)
	foreign, err := newCA(t).CAKey()
	check(t, err)
	before, err := d.CA()
	check(t, err)
	want(t, d.Trust(s.New, s.Key), ErrMismatch)
	want(t, d.Trust(slices.Concat(s.Old, s.New), foreign), ErrMismatch)
	for _, text := range []string{"", "no PEM", string(s.Key), string(s.Old) + "rest"} {
		if err := d.Trust([]byte(text), nil); err == nil {
			t.Errorf("%q was taken for CAs", text)
		}
	}
	if now, err := d.CA(); err != nil || !bytes.Equal(before, now) {
		t.Errorf("ca.crt was changed, %v", err)
	}
	if _, err := joined(t, ca, "n2", "127.0.0.3", time.Now()).Succession("c1"); !errors.Is(err, ErrNoCA) {
		t.Errorf("without the key: %v", err)
	}
}

func reissue(t *testing.T, by, d Dir, name, ip string) error {
	t.Helper()
	csr, err := d.Request(name, ip)
	check(t, err)
	cert, err := by.Sign(csr, name, ip, cluster.Manager)
	check(t, err)
	cas, err := d.CA()
	check(t, err)
	return d.Install(cas, cert)
}

func (d Dir) copyOf(t *testing.T) Dir {
	t.Helper()
	c := Dir(t.TempDir())
	check(t, os.CopyFS(string(c), os.DirFS(string(d))))
	return c
}

func pinOfOnly(t *testing.T, text []byte) string {
	t.Helper()
	ca, err := parseCert(text)
	check(t, err)
	return pinOf(ca)
}
