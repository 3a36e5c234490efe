package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// shake does a handshake over TCP and returns what each side says.
func shake(t *testing.T, server, client *tls.Config) (peer string, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		s := tls.Server(conn, server)
		if err := s.HandshakeContext(ctx); err != nil {
			done <- err
			return
		}
		state := s.ConnectionState()
		peer, _ = PeerName(&state)
		_, err = s.Write([]byte("hello"))
		done <- err
	}()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	check(t, err)
	defer conn.Close()
	c := tls.Client(conn, client)
	clientErr = c.HandshakeContext(ctx)
	if clientErr == nil {
		// A server that refuses the client's certificate says so only now.
		_, clientErr = c.Read(make([]byte, 5))
	}
	conn.Close()
	serverErr = <-done
	return peer, serverErr, clientErr
}

func TestHandshakes(t *testing.T) {
	now := time.Now()
	expired, ahead := now.Add(-lifeOfNode-time.Hour), now.Add(2*time.Hour)
	ca, foreign := newCA(t), newCA(t)
	pin, err := ca.Pin()
	check(t, err)
	foreignPin, err := foreign.Pin()
	check(t, err)
	node := func(ca Dir, name string, then time.Time) Dir { return joined(t, ca, name, "127.0.0.2", then) }
	client := func(d Dir, name string) *tls.Config {
		c, err := d.ClientTLS(name)
		check(t, err)
		return c
	}
	unnamed := client(node(ca, "n2", now), "n1")
	unnamed.GetClientCertificate = nil
	for _, test := range []struct {
		what   string
		server Dir
		client *tls.Config
		peer   string
		err    string // in what either side says; empty: it works
	}{
		{"members", node(ca, "n1", now), client(node(ca, "n2", now), "n1"), "n2", ""},
		{"members, by address", node(ca, "n1", now), client(node(ca, "n2", now), "127.0.0.2"), "n2", ""},
		{"a client without certificate", node(ca, "n1", now), unnamed, "", ""},
		{"wrong name", node(ca, "n1", now), client(node(ca, "n2", now), "n3"), "", "not n3"},
		{"foreign server", node(foreign, "n1", now), client(node(ca, "n2", now), "n1"), "", "unknown authority"},
		{"foreign client", node(ca, "n1", now), foreignClient(t, ca, node(foreign, "n2", now)), "", "unknown authority"},
		{"expired server", node(ca, "n1", expired), client(node(ca, "n2", now), "n1"), "", "expired"},
		{"expired client", node(ca, "n1", now), client(node(ca, "n2", expired), "n1"), "", "expired"},
		{"old TLS", node(ca, "n1", now), &tls.Config{MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true}, "", "protocol version"},
		{"joining, right pin", node(ca, "n1", now), BootstrapTLS(pin), "", ""},
		{"joining, wrong pin", node(ca, "n1", now), BootstrapTLS(foreignPin), "", ErrWrongPin.Error()},
		{"joining, expired server", node(ca, "n1", expired), BootstrapTLS(pin), "", "expired"},
		{"joining, server of a clock that is ahead", node(ca, "n1", ahead), BootstrapTLS(pin), "", "not yet valid"},
		{"asking for the time, an expired server", node(ca, "n1", now.Add(-lifeOfNode-time.Minute)), ClockTLS(pin), "", ""},
		{"asking for the time, server of a clock that is ahead", node(ca, "n1", ahead), ClockTLS(pin), "", ""},
		{"asking for the time, wrong pin", node(ca, "n1", now), ClockTLS(foreignPin), "", ErrWrongPin.Error()},
	} {
		t.Run(test.what, func(t *testing.T) {
			server, err := test.server.ServerTLS()
			check(t, err)
			peer, serverErr, clientErr := shake(t, server, test.client)
			err = errors.Join(serverErr, clientErr)
			if test.err == "" {
				check(t, err)
				if peer != test.peer {
					t.Errorf("peer %q, want %q", peer, test.peer)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("error %v, want one with %q", err, test.err)
			}
		})
	}

	t.Run("joining, the CA shown by somebody else", func(t *testing.T) {
		// An attacker has the CA's certificate, which is public, but not its key.
		leaf := node(foreign, "n1", now)
		own, err := tls.LoadX509KeyPair(leaf.CertFile(), leaf.KeyFile())
		check(t, err)
		real, err := ca.ca()
		check(t, err)
		own.Certificate = append(own.Certificate, real.Raw)
		_, _, err = shake(t, &tls.Config{Certificates: []tls.Certificate{own}}, BootstrapTLS(pin))
		var unknown x509.UnknownAuthorityError
		if !errors.As(err, &unknown) {
			t.Errorf("error %v", err)
		}
	})
}

// foreignClient trusts ca but shows the certificate of another cluster, even
// though the server names the authorities that it wants.
func foreignClient(t *testing.T, ca, d Dir) *tls.Config {
	t.Helper()
	root, err := ca.ca()
	check(t, err)
	own, err := tls.LoadX509KeyPair(d.CertFile(), d.KeyFile())
	check(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(root)
	return &tls.Config{
		ServerName: "n1", RootCAs: roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil },
	}
}

func TestPeerNameNeedsVerification(t *testing.T) {
	if name, ok := PeerName(nil); ok || name != "" {
		t.Error("a plain connection has a name")
	}
	cert := &x509.Certificate{Subject: pkix.Name{CommonName: "n1"}}
	if _, ok := PeerName(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}); ok {
		t.Error("a certificate that nobody verified has a name")
	}
}

func TestReload(t *testing.T) {
	ca := newCA(t)
	n1 := joined(t, ca, "n1", "127.0.0.2", time.Now())
	n2 := joined(t, ca, "n2", "127.0.0.3", time.Now())
	server, err := n1.ServerTLS()
	check(t, err)
	client, err := n2.ClientTLS("n1")
	check(t, err)
	var seen []string
	client.VerifyConnection = func(c tls.ConnectionState) error {
		seen = append(seen, hexSum(c.PeerCertificates[0].Raw))
		return nil
	}
	hands := func() {
		_, serverErr, clientErr := shake(t, server, client)
		check(t, errors.Join(serverErr, clientErr))
	}
	hands()
	renew(t, ca, n1, "n1", "127.0.0.2", time.Now())
	hands()
	check(t, os.WriteFile(n1.CertFile(), []byte("half a certif"), 0o644))
	hands()
	if seen[0] == seen[1] || seen[1] != seen[2] {
		t.Errorf("certificates shown: %v", seen)
	}
}
