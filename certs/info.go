package certs

import (
	"crypto/x509"
	"fmt"
	"time"
)

// Info is what people and programs ask of a certificate.
type Info struct {
	Name        string    `json:"name"` // of the node, or of the cluster's CA
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	Fingerprint string    `json:"fingerprint"` // SHA-256, hex
}

// Due says whether two thirds of the certificate's life are over, so that it is to be
// replaced.
func (i Info) Due(now time.Time) bool {
	return now.After(i.NotBefore.Add(i.NotAfter.Sub(i.NotBefore) * 2 / 3))
}

// Trusted is what this node has: its own certificate, and the CAs that it trusts, the
// one that signs first. Signer is the fingerprint of the one that signed its own.
type Trusted struct {
	Own    Info   `json:"own"`
	Signer string `json:"signer"`
	CAs    []Info `json:"cas"`
}

// Info describes this node's certificate and the CAs.
func (d Dir) Info() (t Trusted, err error) {
	cas, err := d.cas()
	if err != nil {
		return t, err
	}
	text, err := d.Cert()
	if err != nil {
		return t, err
	}
	own, err := parseCert(text)
	if err != nil {
		return t, fmt.Errorf("certificate %w", d.spoilt(d.CertFile(), err))
	}
	t.Own = infoOf(own)
	if ca := signerOf(own, cas); ca != nil {
		t.Signer = hexSum(ca.Raw)
	}
	for _, ca := range cas {
		t.CAs = append(t.CAs, infoOf(ca))
	}
	return t, nil
}

func infoOf(c *x509.Certificate) Info {
	return Info{c.Subject.CommonName, c.NotBefore, c.NotAfter, hexSum(c.Raw)}
}
