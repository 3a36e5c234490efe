package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// ServerTLS is for listeners of our own protocols: TLS 1.3, with this node's
// certificate and the CA behind it, so that a joining node can compare the pin.
// A client's certificate is verified where one is given: see PeerName. The
// node's certificate and the CAs are read again when their files change.
func (d Dir) ServerTLS() (*tls.Config, error) {
	cas, own, err := d.pair()
	if err != nil {
		return nil, fmt.Errorf("server TLS: %w", err)
	}
	base := &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.VerifyClientCertIfGiven,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, err := own.get()
			if err != nil {
				return nil, err
			}
			known, _, err := cas.get()
			if err != nil {
				return nil, err
			}
			leaf, err := x509.ParseCertificate(cert.Certificate[0])
			if err != nil {
				return nil, err
			}
			chain := *cert
			chain.Certificate = cert.Certificate[:1:1]
			if ca := signerOf(leaf, known); ca != nil {
				chain.Certificate = append(chain.Certificate, ca.Raw)
			}
			return &chain, nil
		},
	}
	conf := base.Clone()
	conf.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		_, pool, err := cas.get()
		if err != nil {
			return nil, err
		}
		now := base.Clone()
		now.ClientCAs = pool
		return now, nil
	}
	return conf, nil
}

// ClientTLS is for connections to a member of the cluster, which is expected to
// be serverName: a node name or an IP address. This node shows its certificate.
func (d Dir) ClientTLS(serverName string) (*tls.Config, error) {
	conf, err := d.Clients()
	if err == nil && serverName == "" {
		err = errors.New("client TLS: it is not said who is expected")
	}
	if err != nil {
		return nil, err
	}
	return conf(serverName), nil
}

// Clients makes the settings of ClientTLS for one member after the other. All of them
// read this node's certificate and the CAs again when their files change.
func (d Dir) Clients() (func(serverName string) *tls.Config, error) {
	cas, own, err := d.pair()
	if err != nil {
		return nil, fmt.Errorf("client TLS: %w", err)
	}
	return func(serverName string) *tls.Config {
		return &tls.Config{
			MinVersion: tls.VersionTLS13,
			ServerName: serverName,
			// VerifyConnection does what Go would, with the CAs that there are by then.
			InsecureSkipVerify: true,
			VerifyConnection:   func(c tls.ConnectionState) error { return cas.verify(c, serverName) },
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return own.get()
			},
		}
	}, nil
}

// BootstrapTLS is for the one connection of a node that has no certificate yet:
// it accepts only a server whose certificate is signed by the CA with this pin.
// The handshake fails with ErrWrongPin where the server shows another CA.
func BootstrapTLS(pin string) *tls.Config {
	return pinned(pin, func(*x509.Certificate) time.Time { return time.Now() })
}

// ClockTLS is BootstrapTLS for the question what a member's clock shows: by a clock
// that is wrong here no certificate can be judged, so this one takes no notice of when
// they are valid.
func ClockTLS(pin string) *tls.Config {
	return pinned(pin, func(shown *x509.Certificate) time.Time { return shown.NotAfter })
}

// pinned verifies what a server shows as of a time.
func pinned(pin string, at func(shown *x509.Certificate) time.Time) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// VerifyConnection below does what Go would: the CA is not known
		// beforehand, only its pin. The server's name is not known at all.
		InsecureSkipVerify: true,
		VerifyConnection: func(c tls.ConnectionState) error {
			for _, ca := range c.PeerCertificates {
				if hasPin(ca, pin) {
					shown := c.PeerCertificates[0]
					return verify(shown, ca, x509.ExtKeyUsageServerAuth, at(shown))
				}
			}
			return ErrWrongPin
		},
	}
}

// PeerName is the node on the other side of a connection, if it showed a
// certificate of the cluster's CA.
func PeerName(c *tls.ConnectionState) (string, bool) {
	if c == nil || len(c.VerifiedChains) == 0 || len(c.VerifiedChains[0]) == 0 {
		return "", false
	}
	return c.VerifiedChains[0][0].Subject.CommonName, true
}

func (d Dir) pair() (*trusted, *reloaded, error) {
	cas := &trusted{dir: d}
	if _, _, err := cas.get(); err != nil {
		return nil, nil, err
	}
	own := &reloaded{dir: d}
	_, err := own.get()
	return cas, own, err
}

// reloaded is this node's certificate, read again when its file was replaced.
type reloaded struct {
	dir Dir

	mu   sync.Mutex
	cert *tls.Certificate
	seen stamp
}

// stamp tells two states of a file apart. Files here are replaced, not changed.
type stamp struct {
	modified time.Time
	size     int64
	inode    uint64
}

// get keeps to the old certificate while the new one cannot be read: it may be
// in the middle of its replacement.
func (r *reloaded) get() (*tls.Certificate, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, err := stampOf(r.dir.CertFile())
	if r.cert != nil && (err != nil || now == r.seen) {
		return r.cert, nil
	}
	cert, err := r.dir.Pair()
	if err != nil {
		if r.cert != nil {
			return r.cert, nil
		}
		return nil, err
	}
	r.cert, r.seen = &cert, now
	return r.cert, nil
}

func stampOf(file string) (stamp, error) {
	info, err := os.Stat(file)
	if err != nil {
		return stamp{}, err
	}
	return stamp{info.ModTime(), info.Size(), inode(info)}, nil
}
