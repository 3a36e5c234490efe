package certs

import (
	"crypto"
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"slices"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

const (
	lifeOfCA   = 10 * 365 * 24 * time.Hour
	lifeOfNode = 2 * 365 * 24 * time.Hour

	// backdate lets nodes whose clocks are behind accept a new certificate.
	backdate = time.Hour

	// consulServer is the name that Consul servers expect of each other:
	// server.DATACENTER.DOMAIN.
	consulServer = "server.understudy.consul"
)

// The refusals of this package.
var (
	// ErrWrongPin: the CA is not the one that the join token names.
	ErrWrongPin = errors.New("the cluster's CA is not the one that the token was made for")
	// ErrNoCA: this node has no CA key, so it cannot sign.
	ErrNoCA = errors.New("this node does not hold the CA key")
	// ErrBadRequest: a CSR is not what a joining node may ask for.
	ErrBadRequest = errors.New("certificate request refused")
	// ErrMismatch: a certificate and a key, or a certificate and the CA, do
	// not belong together.
	ErrMismatch = errors.New("certificate does not fit")
)

// NewCA makes the CA of a new cluster. One that is there and valid is kept, and
// an attempt that broke off is completed.
func (d Dir) NewCA(clusterID string) error { return d.newCA(clusterID, time.Now()) }

func (d Dir) newCA(clusterID string, now time.Time) error {
	if _, err := os.Stat(d.CAFile()); err == nil {
		_, _, err := d.authority(now)
		return err
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make CA: %w", err)
	}
	key, err := d.key(d.CAKeyFile(), true)
	if err != nil {
		return err
	}
	text, err := makeCA(clusterID, key, now)
	if err != nil {
		return err
	}
	return d.write(d.CAFile(), text, public)
}

// makeCA is the certificate of a CA, as PEM.
func makeCA(clusterID string, key crypto.Signer, now time.Time) ([]byte, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "understudy cluster " + clusterID},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(lifeOfCA),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true, // signs nodes, not further CAs
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	return encodePEM(blockCert, der), nil
}

// authority is the CA with its key, if this node holds it and it is valid.
func (d Dir) authority(now time.Time) (*x509.Certificate, crypto.Signer, error) {
	cas, err := d.cas()
	if err != nil {
		return nil, nil, err
	}
	ca := cas[0]
	key, err := d.key(d.CAKeyFile(), false)
	if err == nil {
		if of := keyed(cas, key); of != nil {
			ca = of
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, ErrNoCA
	case err != nil:
		return nil, nil, err
	case !key.PublicKey.Equal(ca.PublicKey):
		return nil, nil, fmt.Errorf("CA key: %w: it is not the key of %s", ErrMismatch, d.CAFile())
	case !ca.IsCA:
		return nil, nil, fmt.Errorf("%s: %w: not a CA", d.CAFile(), ErrMismatch)
	case now.After(ca.NotAfter):
		return nil, nil, fmt.Errorf("the CA expired on %s", ca.NotAfter.Format(time.DateOnly))
	}
	return ca, key, nil
}

// ca is the CA that signs.
func (d Dir) ca() (*x509.Certificate, error) {
	cas, err := d.cas()
	if err != nil {
		return nil, err
	}
	return cas[0], nil
}

// Pin names the CA by its public key: "sha256:" and the hex SHA-256 of the
// certificate's SubjectPublicKeyInfo.
func (d Dir) Pin() (string, error) {
	ca, err := d.ca()
	if err != nil {
		return "", err
	}
	return pinOf(ca), nil
}

const pinPrefix = "sha256:"

func pinOf(ca *x509.Certificate) string { return pinPrefix + hexSum(ca.RawSubjectPublicKeyInfo) }

func hasPin(ca *x509.Certificate, pin string) bool {
	return ca.IsCA && subtle.ConstantTimeCompare([]byte(pinOf(ca)), []byte(pin)) == 1
}

// CheckPin returns an error that wraps ErrWrongPin unless caPEM is a CA with
// that pin.
func CheckPin(caPEM []byte, pin string) error {
	ca, err := parseCert(caPEM)
	if err != nil {
		return fmt.Errorf("check pin: %w", err)
	}
	if !hasPin(ca, pin) {
		return fmt.Errorf("check pin: %w", ErrWrongPin)
	}
	return nil
}

// Request asks for a certificate for this node: a CSR as PEM. The node's key is
// made where there is none; it stays here.
func (d Dir) Request(name, ip string) ([]byte, error) {
	addr, err := checkIdentity(name, ip)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	key, err := d.key(d.KeyFile(), true)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{addr},
	}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return encodePEM(blockCSR, der), nil
}

func checkIdentity(name, ip string) (net.IP, error) {
	if err := cluster.CheckName(name); err != nil {
		return nil, err
	}
	if err := cluster.CheckAddress(ip); err != nil {
		return nil, err
	}
	return net.ParseIP(ip), nil
}

// RequestKey identifies the key that a CSR is for, after its signature was
// checked: the hex SHA-256 of its SubjectPublicKeyInfo. The error wraps
// ErrBadRequest.
func RequestKey(csrPEM []byte) (string, error) {
	csr, err := parseCSR(csrPEM)
	if err != nil {
		return "", err
	}
	return hexSum(csr.RawSubjectPublicKeyInfo), nil
}

func parseCSR(csrPEM []byte) (*x509.CertificateRequest, error) {
	der, err := decodePEM(blockCSR, csrPEM)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	return csr, nil
}

// Sign makes the certificate of the node name at ip, as PEM, of a CSR that asks
// for exactly that. What a certificate says is decided here, not in the CSR: that
// of a runner lets it be neither a server of Consul nor a standby, which knows
// managers by a subject that is their name alone. The errors wrap ErrBadRequest,
// or ErrNoCA on a node without the CA key.
func (d Dir) Sign(csrPEM []byte, name, ip string, kind cluster.Kind) ([]byte, error) {
	return d.sign(csrPEM, name, ip, kind, time.Now())
}

func (d Dir) sign(csrPEM []byte, name, ip string, kind cluster.Kind, now time.Time) ([]byte, error) {
	ca, caKey, err := d.authority(now)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", name, err)
	}
	addr, err := checkIdentity(name, ip)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	csr, err := parseCSR(csrPEM)
	if err != nil {
		return nil, err
	}
	if err := asksOnlyFor(csr, name, addr); err != nil {
		return nil, err
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	end := now.Add(lifeOfNode)
	if end.After(ca.NotAfter) {
		end = ca.NotAfter
	}
	ips := []net.IP{addr}
	if loopback := net.IPv4(127, 0, 0, 1); !addr.Equal(loopback) {
		ips = append(ips, loopback)
	}
	subject, hosts := pkix.Name{CommonName: name}, []string{name, "localhost"}
	if kind == cluster.Manager {
		hosts = append(hosts, consulServer)
	} else {
		subject.OrganizationalUnit = []string{string(kind)}
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		Subject:               subject,
		NotBefore:             now.Add(-backdate),
		NotAfter:              end,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:              hosts,
		IPAddresses:           ips,
	}, ca, csr.PublicKey, caKey)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", name, err)
	}
	return encodePEM(blockCert, der), nil
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

func asksOnlyFor(csr *x509.CertificateRequest, name string, ip net.IP) error {
	subject := len(csr.Subject.Names) == 1 && csr.Subject.CommonName == name
	names := slices.Equal(csr.DNSNames, []string{name}) && len(csr.EmailAddresses) == 0 && len(csr.URIs) == 0
	ips := len(csr.IPAddresses) == 1 && csr.IPAddresses[0].Equal(ip)
	extensions := len(csr.Extensions) == 1 && csr.Extensions[0].Id.Equal(oidSubjectAltName)
	if !subject || !names || !ips || !extensions {
		return fmt.Errorf("%w: it does not ask for node %s at %s alone", ErrBadRequest, name, ip)
	}
	return nil
}

func serialNumber() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// Install keeps the CA and this node's certificate, after a check that the CA
// signed it for the key of this node. Otherwise the error wraps ErrMismatch, and
// nothing is changed.
func (d Dir) Install(caPEM, certPEM []byte) error {
	cas, err := parseCAs(caPEM)
	if err != nil {
		return fmt.Errorf("install certificate: CA: %w", err)
	}
	cert, err := parseCert(certPEM)
	if err != nil {
		return fmt.Errorf("install certificate: %w", err)
	}
	key, err := d.key(d.KeyFile(), false)
	if err != nil {
		return fmt.Errorf("install certificate: %w", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return fmt.Errorf("install certificate: %w: it is not for the key of this node", ErrMismatch)
	}
	ca := signerOf(cert, cas)
	if ca == nil {
		ca = cas[0]
	}
	if err := verify(cert, ca, x509.ExtKeyUsageAny, time.Now()); err != nil {
		return fmt.Errorf("install certificate: %w: %w", ErrMismatch, err)
	}
	if err := d.write(d.CAFile(), caPEM, public); err != nil {
		return err
	}
	return d.write(d.CertFile(), certPEM, public)
}

// InstallCAKey keeps the CA's key on a manager, after a check that it is the key
// of the CA that was installed.
func (d Dir) InstallCAKey(keyPEM []byte) error {
	cas, err := d.cas()
	if err != nil {
		return fmt.Errorf("install CA key: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return fmt.Errorf("install CA key: %w", err)
	}
	if keyed(cas, key) == nil {
		return fmt.Errorf("install CA key: %w: it is not the key of %s", ErrMismatch, d.CAFile())
	}
	return d.write(d.CAKeyFile(), keyPEM, private)
}

// verify says whether ca signed cert, both are valid then and cert may be used so.
func verify(cert, ca *x509.Certificate, usage x509.ExtKeyUsage, then time.Time) error {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	_, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: then, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err
}
