package filesync

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/syncthing/syncthing/lib/protocol"
)

// bepProtocol is what Syncthing's peers agree on during the handshake.
// See https://docs.syncthing.net/specs/bep-v1.html.
const bepProtocol = "bep/1.0"

// tlsConfig serves both directions. Syncthing itself only compares the hash of
// the peer's certificate with the devices that it knows; who signed it and
// until when it holds are checked here, before anything is exchanged. inbound
// is told of every peer that passed and that dialled us.
func (o Options) tlsConfig(inbound func(protocol.DeviceID)) *tls.Config {
	base := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{o.Certificate},
		NextProtos:             []string{bepProtocol},
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // VerifyConnection does it: there is no host name to check
		VerifyConnection:       o.verify,
	}
	accepting := base.Clone()
	accepting.VerifyConnection = func(s tls.ConnectionState) error {
		if err := o.verify(s); err != nil {
			return err
		}
		inbound(protocol.NewDeviceID(s.PeerCertificates[0].Raw))
		return nil
	}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return accepting, nil }
	return base
}

func (o Options) verify(s tls.ConnectionState) error {
	if len(s.PeerCertificates) != 1 {
		return errors.New("peer must send one certificate")
	}
	leaf := s.PeerCertificates[0]
	_, err := leaf.Verify(x509.VerifyOptions{Roots: o.CA, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		o.Logger.Warn("refused a peer", "peer", leaf.Subject.CommonName, "err", err)
		return fmt.Errorf("certificate of %q: %w", leaf.Subject.CommonName, err)
	}
	return nil
}
