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

// Info describes this node's certificate and the CA's.
func (d Dir) Info() (own, ca Info, err error) {
	authority, err := d.ca()
	if err != nil {
		return own, ca, err
	}
	text, err := d.Cert()
	if err != nil {
		return own, ca, err
	}
	cert, err := parseCert(text)
	if err != nil {
		return own, ca, fmt.Errorf("certificate %w", d.spoilt(d.CertFile(), err))
	}
	return infoOf(cert), infoOf(authority), nil
}

func infoOf(c *x509.Certificate) Info {
	return Info{c.Subject.CommonName, c.NotBefore, c.NotAfter, hexSum(c.Raw)}
}
