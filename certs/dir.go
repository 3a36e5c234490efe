package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/understudy-ha/understudy/statefile"
)

// Dir is the cluster-ssl folder of a node. Its files are replaced as a whole, so
// that a reader never sees half of one. Keys are readable by their owner alone, but
// for the node's own, which Consul, a user of the same group, uses too.
type Dir string

// CAFile holds the CA's certificate.
func (d Dir) CAFile() string { return filepath.Join(string(d), "ca.crt") }

// CAKeyFile holds the CA's private key. Managers have it, runners do not.
func (d Dir) CAKeyFile() string { return filepath.Join(string(d), "ca.key") }

// CertFile holds this node's certificate alone, without the CA's.
func (d Dir) CertFile() string { return filepath.Join(string(d), "node.crt") }

// KeyFile holds this node's private key, which never leaves it.
func (d Dir) KeyFile() string { return filepath.Join(string(d), "node.key") }

// GossipFile holds the key of Consul's gossip.
func (d Dir) GossipFile() string { return filepath.Join(string(d), "gossip.key") }

const (
	public  = 0o644
	shared  = 0o640
	private = 0o600
)

func (d Dir) write(file string, text []byte, mode os.FileMode) error {
	if err := os.MkdirAll(string(d), 0o755); err != nil {
		return fmt.Errorf("make certificate folder: %w", err)
	}
	return statefile.WriteText(file, text, mode)
}

// CA returns the CA's certificate as PEM, and while it is replaced that of the other
// too.
func (d Dir) CA() ([]byte, error) { return read(d.CAFile()) }

// CAKey returns the CA's private key as PEM, to be given to another manager. It
// wraps fs.ErrNotExist on a node that has none.
func (d Dir) CAKey() ([]byte, error) { return read(d.CAKeyFile()) }

// Cert returns this node's certificate as PEM.
func (d Dir) Cert() ([]byte, error) { return read(d.CertFile()) }

// GossipKey returns the gossip key in the form that Consul wants: base64 of 32
// bytes.
func (d Dir) GossipKey() (string, error) {
	text, err := read(d.GossipFile())
	return strings.TrimSpace(string(text)), err
}

func read(file string) ([]byte, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", mayNot(err, file))
	}
	return text, nil
}

// Pair is this node's certificate with its key. The error says what to do.
func (d Dir) Pair() (tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(d.CertFile(), d.KeyFile())
	switch {
	case errors.Is(err, fs.ErrPermission):
		return cert, fmt.Errorf("load certificate of this node: %w", mayNot(err, d.KeyFile()))
	case err != nil:
		return cert, fmt.Errorf("load certificate of this node, %s with %s: %w; on a manager 'sudo understudy certs rotate --offline' makes a new one, a runner has to be removed and to join again",
			d.CertFile(), d.KeyFile(), err)
	}
	return cert, nil
}

// mayNot adds to the error of a file that may not be read who may.
func mayNot(err error, file string) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return fmt.Errorf("%w; commands read it with sudo, and the daemons when 'chown -R understudy:understudy %s' was done", err, filepath.Dir(file))
}

// spoilt is the error of a file of this folder that does not hold what it should.
func (d Dir) spoilt(file string, err error) error {
	remedy := "copy it from another member"
	switch file {
	case d.CAKeyFile(), d.NextCAKeyFile():
		remedy = "copy it from another manager"
	case d.CertFile():
		remedy = "on a manager 'sudo understudy certs rotate --offline' makes a new one, a runner has to be removed and to join again"
	case d.KeyFile():
		remedy = "on a manager delete it, and 'sudo understudy certs rotate --offline' makes another, a runner has to be removed and to join again"
	}
	return fmt.Errorf("%s: %w; %s", file, err, remedy)
}

// NewGossipKey makes a gossip key where there is none.
func (d Dir) NewGossipKey() error {
	_, err := d.GossipKey()
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.InstallGossipKey(GossipKey())
}

// GossipKey makes a gossip key.
func GossipKey() string {
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	return base64.StdEncoding.EncodeToString(key[:])
}

// InstallGossipKey keeps the gossip key of the cluster.
func (d Dir) InstallGossipKey(key string) error {
	if raw, err := base64.StdEncoding.DecodeString(key); err != nil || len(raw) != 32 {
		return errors.New("install gossip key: not base64 of 32 bytes")
	}
	return d.write(d.GossipFile(), []byte(key+"\n"), private)
}

// Derive makes a secret that follows from the CA's key and a text: who lacks either
// cannot tell it.
func (d Dir) Derive(text string) (secret [16]byte, err error) {
	key, err := d.CAKey()
	if err != nil {
		return secret, err
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	copy(secret[:], mac.Sum(nil))
	return secret, nil
}

// key reads a private key, and makes one where create is set and there is none.
func (d Dir) key(file string, create bool) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(file)
	switch {
	case err == nil:
		key, err := parseKey(text)
		if err != nil {
			return nil, fmt.Errorf("key %w", d.spoilt(file, err))
		}
		return key, nil
	case !create || !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read key: %w", mayNot(err, file))
	}
	key, made, err := newKey()
	if err != nil {
		return nil, err
	}
	mode := os.FileMode(private)
	if file == d.KeyFile() {
		mode = shared
	}
	return key, d.write(file, made, mode)
}

// newKey makes a private key, and its PEM.
func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	return key, encodePEM(blockKey, der), nil
}

// The names of PEM blocks.
const (
	blockCert = "CERTIFICATE"
	blockCSR  = "CERTIFICATE REQUEST"
	blockKey  = "PRIVATE KEY"
)

func encodePEM(block string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: block, Bytes: der})
}

// decodePEM wants exactly one block of that name and nothing after it.
func decodePEM(block string, text []byte) ([]byte, error) {
	b, rest := pem.Decode(text)
	if b == nil || b.Type != block || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("not one PEM block %s", block)
	}
	return b.Bytes, nil
}

func parseKey(text []byte) (*ecdsa.PrivateKey, error) {
	der, err := decodePEM(blockKey, text)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("not an ECDSA key")
	}
	return ec, nil
}

func parseCert(text []byte) (*x509.Certificate, error) {
	der, err := decodePEM(blockCert, text)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Fingerprint is the SHA-256 of a certificate, in hex.
func Fingerprint(certPEM []byte) (string, error) {
	cert, err := parseCert(certPEM)
	if err != nil {
		return "", fmt.Errorf("fingerprint of certificate: %w", err)
	}
	return hexSum(cert.Raw), nil
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
