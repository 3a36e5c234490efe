package filesync

import (
	"crypto/tls"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// handshake dials a site with a certificate and returns how it ended. In TLS
// 1.3 the server's refusal reaches the client with the first read.
func handshake(t *testing.T, s *site, cert tls.Certificate) error {
	t.Helper()
	cert.Certificate = cert.Certificate[:1]
	var conn *tls.Conn
	eventually(t, "listens", func() (up bool) {
		c, err := tls.Dial("tcp", s.opts.Listen, &tls.Config{
			Certificates: []tls.Certificate{cert}, NextProtos: []string{bepProtocol},
			InsecureSkipVerify: true, MinVersion: tls.VersionTLS13,
		})
		conn = c
		return err == nil
	})
	defer conn.Close()
	ok(t, conn.SetReadDeadline(time.Now().Add(30*time.Second)))
	_, err := conn.Read(make([]byte, 1))
	return err
}

func TestPeersOfAnotherAuthorityOrOutOfDateAreRefused(t *testing.T) {
	_, s := newSites(t, "a")
	a := s[0]
	a.run()
	ours := &authority{}
	*ours = *newAuthority(t)
	a.stop()
	a.opts.CA = ours.pool
	a.run()
	good, _ := ours.issue(t, "b", time.Now().Add(time.Hour))
	expired, _ := ours.issue(t, "b", time.Now().Add(-time.Minute))
	foreign, _ := newAuthority(t).issue(t, "b", time.Now().Add(time.Hour))
	if err := handshake(t, a, good); err != nil {
		t.Errorf("a good certificate is refused in the handshake: %v", err)
	}
	if err := handshake(t, a, expired); err == nil {
		t.Error("an expired certificate passed the handshake")
	}
	if err := handshake(t, a, foreign); err == nil {
		t.Error("a certificate of another authority passed the handshake")
	}
}

// A certificate of the right authority does not make a member: the device must
// be registered, and under its own name.
func TestOnlyTheRegisteredDeviceMayTakePart(t *testing.T) {
	for name, spoil := range map[string]func(n *cluster.Node, other string){
		"another device": func(n *cluster.Node, other string) { n.DeviceID = other },
		"another name":   nil,
	} {
		t.Run(name, func(t *testing.T) {
			st, s := newSites(t, "a", "b", "c")
			a, b, c := s[0], s[1], s[2]
			st.change(func(v *cluster.View) {
				other := v.Nodes["c"].DeviceID
				delete(v.Nodes, "c")
				n := v.Nodes["b"]
				if spoil != nil {
					spoil(&n, other)
					v.Nodes["b"] = n
					return
				}
				delete(v.Nodes, "b")
				n.Name = "x"
				v.Nodes["x"] = n
			})
			st.activate("a", 1)
			a.run()
			b.run()
			a.write("secret", "1")
			inSync(t, 1, a)
			eventually(t, "b tried to connect", func() bool { return len(b.engine.conns.ConnectionStatus()) > 0 })
			// The right device gets everything meanwhile.
			b.stop()
			if b.read("secret") != "-" {
				t.Error("a device that is not a member received a file")
			}
			if spoil != nil {
				st.change(func(v *cluster.View) {
					n := v.Nodes["b"]
					delete(v.Nodes, "b")
					n.Name, n.Address, n.Ports.FileSync = "c", "127.10.3.3", portOf(t, c)
					v.Nodes["c"] = n
				})
				c.run()
				has(t, "secret", "1", c)
			}
		})
	}
}
