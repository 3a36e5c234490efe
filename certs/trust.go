package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"
)

// While the CA of a cluster is replaced its members trust two: ca.crt has both then,
// the one that signs first.

// NextCAKeyFile holds the key of the CA that is to sign next, while every member learns
// to trust it. Managers have it.
func (d Dir) NextCAKeyFile() string { return d.CAKeyFile() + ".next" }

// CAs are those that this node trusts, the one that signs first.
func (d Dir) cas() ([]*x509.Certificate, error) {
	text, err := d.CA()
	if err != nil {
		return nil, err
	}
	all, err := parseCAs(text)
	if err != nil {
		return nil, fmt.Errorf("certificate %w", d.spoilt(d.CAFile(), err))
	}
	return all, nil
}

// parseCAs reads one CA or more, and nothing else.
func parseCAs(text []byte) (all []*x509.Certificate, err error) {
	for rest := bytes.TrimSpace(text); len(rest) > 0 || len(all) == 0; rest = bytes.TrimSpace(rest) {
		var b *pem.Block
		b, rest = pem.Decode(rest)
		if b == nil || b.Type != blockCert {
			return nil, fmt.Errorf("not PEM blocks %s alone", blockCert)
		}
		ca, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, ca)
	}
	return all, nil
}

// keyed is the one of some CAs that a key is of; nil: none.
func keyed(cas []*x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	for _, ca := range cas {
		if key.PublicKey.Equal(ca.PublicKey) {
			return ca
		}
	}
	return nil
}

// signerOf is the one of some CAs that signed a certificate; nil: none.
func signerOf(cert *x509.Certificate, cas []*x509.Certificate) *x509.Certificate {
	for _, ca := range cas {
		if cert.CheckSignatureFrom(ca) == nil {
			return ca
		}
	}
	return nil
}

// Trust has this node trust these CAs, as PEM, and no others from now on. The first is
// the one that signs. Managers give its key, or while the first is still the old one
// that of the next, which is kept beside it. CAs that did not sign this node's own
// certificate, or have another key, are refused with an error that wraps ErrMismatch. It
// may be repeated.
func (d Dir) Trust(casPEM, keyPEM []byte) error {
	cas, err := parseCAs(casPEM)
	if err != nil {
		return fmt.Errorf("trust CAs: %w", err)
	}
	text, err := d.Cert()
	if err != nil {
		return err
	}
	own, err := parseCert(text)
	if err != nil {
		return fmt.Errorf("certificate %w", d.spoilt(d.CertFile(), err))
	}
	if signerOf(own, cas) == nil {
		return fmt.Errorf("trust CAs: %w: none of them signed the certificate of %s", ErrMismatch, own.Subject.CommonName)
	}
	signs := true
	if len(keyPEM) > 0 {
		key, err := parseKey(keyPEM)
		if err != nil {
			return fmt.Errorf("trust CAs: key: %w", err)
		}
		of := keyed(cas, key)
		if of == nil {
			return fmt.Errorf("trust CAs: %w: the key is of none of them", ErrMismatch)
		}
		file := d.CAKeyFile()
		if signs = of == cas[0]; !signs {
			file = d.NextCAKeyFile()
		}
		// Before the CAs: a node that finds the key of a CA that it does not know yet
		// takes the one that it had, and the other way round it would have none.
		if err := d.write(file, keyPEM, private); err != nil {
			return err
		}
	}
	if err := d.write(d.CAFile(), casPEM, public); err != nil {
		return err
	}
	if !signs {
		return nil
	}
	if err := os.Remove(d.NextCAKeyFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("trust CAs: %w", err)
	}
	return nil
}

// Succession is a new CA with the one whose place it takes.
type Succession struct {
	Old, New []byte // PEM
	Key      []byte // of New, PEM
	Begun    bool   // this node trusts both already
}

// Succession makes a new CA in memory alone. One that was begun on this node, and not
// brought to its end, is found again.
func (d Dir) Succession(clusterID string) (s Succession, err error) {
	cas, err := d.cas()
	if err != nil {
		return s, err
	}
	if _, _, err := d.authority(time.Now()); err != nil && len(cas) == 1 {
		return s, err
	}
	next, err := d.key(d.NextCAKeyFile(), false)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return s, err
	}
	of := cas[0]
	switch {
	case err == nil && len(cas) > 1 && keyed(cas, next) != nil:
		of = keyed(cas, next)
		s.Key, err = read(d.NextCAKeyFile())
	case len(cas) > 1:
		s.Key, err = d.CAKey()
	default:
		return d.succeed(cas[0], clusterID)
	}
	s.Begun, s.New = true, encodePEM(blockCert, of.Raw)
	for _, ca := range cas {
		if !ca.Equal(of) {
			s.Old = append(s.Old, encodePEM(blockCert, ca.Raw)...)
		}
	}
	return s, err
}

func (d Dir) succeed(old *x509.Certificate, clusterID string) (s Succession, err error) {
	key, text, err := newKey()
	if err != nil {
		return s, err
	}
	s.Key, s.Old = text, encodePEM(blockCert, old.Raw)
	s.New, err = makeCA(clusterID, key, time.Now())
	return s, err
}

// trusted are the CAs of a node as connections check them, read again when the file was
// replaced.
type trusted struct {
	dir Dir

	mu   sync.Mutex
	cas  []*x509.Certificate
	pool *x509.CertPool
	seen stamp
}

// get keeps to the CAs that it has while others cannot be read.
func (t *trusted) get() ([]*x509.Certificate, *x509.CertPool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, err := stampOf(t.dir.CAFile())
	if t.cas != nil && (err != nil || now == t.seen) {
		return t.cas, t.pool, nil
	}
	cas, err := t.dir.cas()
	if err != nil {
		if t.cas != nil {
			return t.cas, t.pool, nil
		}
		return nil, nil, err
	}
	pool := x509.NewCertPool()
	for _, ca := range cas {
		pool.AddCert(ca)
	}
	t.cas, t.pool, t.seen = cas, pool, now
	return cas, pool, nil
}

// verify is what Go does by itself with CAs that never change: see RootCAs of tls.Config.
func (t *trusted) verify(c tls.ConnectionState, server string) error {
	_, pool, err := t.get()
	if err != nil {
		return err
	}
	if len(c.PeerCertificates) == 0 {
		return errors.New("no certificate shown")
	}
	between := x509.NewCertPool()
	for _, ca := range c.PeerCertificates[1:] {
		between.AddCert(ca)
	}
	_, err = c.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, DNSName: server})
	if err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: c.PeerCertificates, Err: err}
	}
	return nil
}
