package certs

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error %v, want %v", err, target)
	}
}

// newCA is the folder of a first node, without its own certificate.
func newCA(t *testing.T) Dir {
	t.Helper()
	d := Dir(filepath.Join(t.TempDir(), "cluster-ssl"))
	check(t, d.NewCA("c1"))
	return d
}

// joined is the folder of a node whose certificate ca signed as of then.
func joined(t *testing.T, ca Dir, name, ip string, then time.Time) Dir {
	t.Helper()
	d := Dir(filepath.Join(t.TempDir(), "cluster-ssl"))
	renew(t, ca, d, name, ip, then)
	return d
}

func renew(t *testing.T, ca, d Dir, name, ip string, then time.Time) {
	t.Helper()
	csr, err := d.Request(name, ip)
	check(t, err)
	cert, err := ca.sign(csr, name, ip, cluster.Manager, then)
	check(t, err)
	caPEM, err := ca.CA()
	check(t, err)
	if since := time.Since(then); since < lifeOfNode && since > -backdate {
		check(t, d.Install(caPEM, cert))
		return
	}
	// Install refuses what has expired, and what is not valid yet.
	want(t, d.Install(caPEM, cert), ErrMismatch)
	check(t, d.write(d.CAFile(), caPEM, public))
	check(t, d.write(d.CertFile(), cert, public))
}

func TestFirstNode(t *testing.T) {
	d := newCA(t)
	check(t, d.NewGossipKey())
	before := map[string]string{}
	files := []string{d.CAFile(), d.CAKeyFile(), d.GossipFile()}
	for _, f := range files {
		text, err := os.ReadFile(f)
		check(t, err)
		before[f] = string(text)
	}
	check(t, d.NewCA("c1"))
	check(t, d.NewGossipKey())
	for _, f := range files {
		if text, _ := os.ReadFile(f); string(text) != before[f] {
			t.Errorf("%s was made anew", f)
		}
	}
	key, err := d.GossipKey()
	check(t, err)
	if raw, err := base64.StdEncoding.DecodeString(key); err != nil || len(raw) != 32 {
		t.Errorf("gossip key: %v, %d bytes", err, len(raw))
	}

	// A start that was killed between key and certificate.
	pin, err := d.Pin()
	check(t, err)
	check(t, os.Remove(d.CAFile()))
	check(t, d.NewCA("c1"))
	if again, err := d.Pin(); again != pin || err != nil {
		t.Errorf("pin %s, then %s, %v", pin, again, err)
	}
	check(t, os.Remove(d.CAKeyFile()))
	want(t, d.NewCA("c1"), ErrNoCA)
}

func TestPermissions(t *testing.T) {
	d := newCA(t)
	check(t, d.NewGossipKey())
	renew(t, d, d, "n1", "10.0.0.1", time.Now())
	for file, mode := range map[string]fs.FileMode{
		d.CAFile(): 0o644, d.CertFile(): 0o644, d.CAKeyFile(): 0o600, d.KeyFile(): 0o640, d.GossipFile(): 0o600,
	} {
		info, err := os.Stat(file)
		check(t, err)
		if info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v, want %v", file, info.Mode(), mode)
		}
	}
}

func TestNodeCertificate(t *testing.T) {
	ca := newCA(t)
	d := joined(t, ca, "n1", "10.0.0.1", time.Now())
	text, err := d.Cert()
	check(t, err)
	cert, err := parseCert(text)
	check(t, err)
	for _, host := range []string{"n1", "localhost", "server.understudy.consul", "10.0.0.1", "127.0.0.1"} {
		if err := cert.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if cert.VerifyHostname("n2") == nil || cert.IsCA || cert.Subject.CommonName != "n1" {
		t.Errorf("certificate: %+v", cert)
	}
	if time.Until(cert.NotBefore) > -59*time.Minute {
		t.Errorf("not backdated: valid from %s", cert.NotBefore)
	}
	if print, err := Fingerprint(text); err != nil || len(print) != 64 {
		t.Errorf("fingerprint %q, %v", print, err)
	}
	if _, err := d.CAKey(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a node that joined has a CA key: %v", err)
	}
	key, err := ca.CAKey()
	check(t, err)
	check(t, d.InstallCAKey(key))
	check(t, d.NewCA("c1")) // kept: it is a CA now

	other, err := newCA(t).CAKey()
	check(t, err)
	want(t, d.InstallCAKey(other), ErrMismatch)
}

// A runner's certificate makes it neither a server of Consul nor a standby of
// PostgreSQL, to which a manager's subject is its name and nothing else.
func TestRunnerCertificate(t *testing.T) {
	ca := newCA(t)
	d := Dir(filepath.Join(t.TempDir(), "cluster-ssl"))
	csr, err := d.Request("r1", "10.0.0.4")
	check(t, err)
	text, err := ca.Sign(csr, "r1", "10.0.0.4", cluster.Runner)
	check(t, err)
	caPEM, err := ca.CA()
	check(t, err)
	check(t, d.Install(caPEM, text))
	cert, err := parseCert(text)
	check(t, err)
	for _, host := range []string{"r1", "localhost", "10.0.0.4", "127.0.0.1"} {
		if err := cert.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if cert.VerifyHostname("server.understudy.consul") == nil || cert.Subject.String() != "CN=r1,OU=runner" {
		t.Errorf("%s for %v", cert.Subject, cert.DNSNames)
	}
}

func TestRequestKeyIsKept(t *testing.T) {
	d := Dir(t.TempDir())
	first, err := d.Request("n1", "10.0.0.1")
	check(t, err)
	second, err := d.Request("n1", "10.0.0.1")
	check(t, err)
	one, err := RequestKey(first)
	check(t, err)
	two, err := RequestKey(second)
	check(t, err)
	if one != two {
		t.Error("a repeated join has another key")
	}
	_, err = d.Request("n1", "host.example")
	if err == nil {
		t.Error("a host name was taken for an address")
	}
	_, err = d.Request("N1", "10.0.0.1")
	want(t, err, cluster.ErrName)
}

func TestSignRefuses(t *testing.T) {
	ca := newCA(t)
	d := Dir(t.TempDir())
	good := func() *x509.CertificateRequest {
		return &x509.CertificateRequest{
			Subject: pkix.Name{CommonName: "n1"}, DNSNames: []string{"n1"}, IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)},
		}
	}
	for what, change := range map[string]func(*x509.CertificateRequest){
		"another name":         func(r *x509.CertificateRequest) { r.Subject.CommonName = "n2" },
		"one more subject":     func(r *x509.CertificateRequest) { r.Subject.Organization = []string{"o"} },
		"one more DNS name":    func(r *x509.CertificateRequest) { r.DNSNames = append(r.DNSNames, "n2") },
		"another address":      func(r *x509.CertificateRequest) { r.IPAddresses[0] = net.IPv4(10, 0, 0, 2) },
		"one more address":     func(r *x509.CertificateRequest) { r.IPAddresses = append(r.IPAddresses, net.IPv4(10, 0, 0, 2)) },
		"a mail address":       func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@b.example"} },
		"one more extension":   func(r *x509.CertificateRequest) { r.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 19}}} },
		"nothing else missing": nil,
	} {
		t.Run(what, func(t *testing.T) {
			req := good()
			if change != nil {
				change(req)
			}
			key, err := d.key(d.KeyFile(), true)
			check(t, err)
			der, err := x509.CreateCertificateRequest(rand.Reader, req, key)
			check(t, err)
			_, err = ca.Sign(encodePEM(blockCSR, der), "n1", "10.0.0.1", cluster.Manager)
			if change == nil {
				check(t, err)
				return
			}
			want(t, err, ErrBadRequest)
		})
	}
	csr, err := d.Request("n1", "10.0.0.1")
	check(t, err)
	t.Run("forged signature", func(t *testing.T) {
		der, err := decodePEM(blockCSR, csr)
		check(t, err)
		der[len(der)-1] ^= 1
		_, err = ca.Sign(encodePEM(blockCSR, der), "n1", "10.0.0.1", cluster.Manager)
		want(t, err, ErrBadRequest)
	})
	t.Run("not a request", func(t *testing.T) {
		_, err := ca.Sign([]byte("hello"), "n1", "10.0.0.1", cluster.Manager)
		want(t, err, ErrBadRequest)
	})
	t.Run("no CA key here", func(t *testing.T) {
		_, err := joined(t, ca, "n2", "10.0.0.2", time.Now()).Sign(csr, "n1", "10.0.0.1", cluster.Manager)
		want(t, err, ErrNoCA)
	})
}

func TestInstallRefuses(t *testing.T) {
	ca, foreign := newCA(t), newCA(t)
	d := joined(t, ca, "n1", "10.0.0.1", time.Now())
	caPEM, _ := ca.CA()
	foreignPEM, _ := foreign.CA()
	own, err := d.Cert()
	check(t, err)
	others, err := joined(t, ca, "n2", "10.0.0.2", time.Now()).Cert()
	check(t, err)
	want(t, d.Install(caPEM, others), ErrMismatch)
	want(t, d.Install(foreignPEM, own), ErrMismatch)
	if still, _ := d.CA(); string(still) != string(caPEM) {
		t.Error("a refused installation replaced the CA")
	}
}

func TestPin(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	pin, err := ca.Pin()
	check(t, err)
	text, _ := ca.CA()
	check(t, CheckPin(text, pin))
	text, _ = other.CA()
	want(t, CheckPin(text, pin), ErrWrongPin)
}
