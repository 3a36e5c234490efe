package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/syncthing/syncthing/lib/protocol"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/services"
)

// visitors knock on the ports of node1, the active node.
type visitors struct {
	g    *group
	at   dev.NodeInfo
	port string
	// member shows the certificate of node3; runner and foreign those of no member, the
	// former signed by the cluster's CA, the latter in the name of node3 by another.
	// All believe the cluster's CA. Of nobody there is none.
	member, runner, foreign, nobody *tls.Config
}

func visit(t *testing.T, g *group) *visitors {
	t.Helper()
	v := &visitors{g: g, at: g.node(t, "node1")}
	ca := certs.Dir(config.Paths(v.at.Root).SSL)
	other := certs.Dir(t.TempDir())
	if err := other.NewCA("another"); err != nil {
		t.Fatal(err)
	}
	conf := func(d certs.Dir) *tls.Config {
		c, err := d.ClientTLS(v.at.Address)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	member := g.node(t, "node3")
	v.member = conf(certs.Dir(config.Paths(member.Root).SSL))
	v.runner = conf(issued(t, ca, "node9", "127.40.35.99", cluster.Runner))
	v.foreign, v.nobody = v.member.Clone(), v.member.Clone()
	v.foreign.GetClientCertificate = conf(issued(t, other, member.Name, member.Address, cluster.Manager)).GetClientCertificate
	v.nobody.GetClientCertificate = nil
	return v
}

// issued is the folder of a node with a certificate that a CA has signed.
func issued(t *testing.T, ca certs.Dir, name, address string, kind cluster.Kind) certs.Dir {
	t.Helper()
	d := certs.Dir(t.TempDir())
	csr, err := d.Request(name, address)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Sign(csr, name, address, kind)
	if err != nil {
		t.Fatal(err)
	}
	of, err := ca.CA()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Install(of, cert); err != nil {
		t.Fatal(err)
	}
	return d
}

// letIn fails unless somebody was let in.
func letIn(t *testing.T, who string, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s is not let in: %v", who, err)
	}
}

// keptOut fails unless somebody was kept out, in one of these words, or by the end of the
// connection, which may be faster than they are.
func keptOut(t *testing.T, who string, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s is let in", who)
		return
	}
	for _, w := range append(words, "EOF", "reset by peer", "broken pipe") {
		if strings.Contains(err.Error(), w) {
			return
		}
	}
	t.Errorf("%s is kept out, but with %v, not %q", who, err, words)
}

// What a TLS server says of no certificate, and of one that it does not believe.
const (
	certNeeded  = "certificate required"
	certUnknown = "unknown certificate authority"
	certBad     = "bad certificate"
)

const patience = 5 * time.Second

// dial connects to the port, by TLS where conf is given; then talk has a time.
func (v *visitors) dial(conf *tls.Config, talk func(net.Conn) error) error {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(v.at.Address, v.port), patience)
	if err != nil {
		return fmt.Errorf("%w: no connection", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if conf != nil {
		conn = tls.Client(conn, conf)
	}
	return talk(conn)
}

// call asks over HTTP, or HTTPS where conf is given. Whatever is not 200 is an error.
func (v *visitors) call(conf *tls.Config, method, path, body string) error {
	scheme := "http"
	if conf != nil {
		scheme = "https"
	}
	request, err := http.NewRequest(method, scheme+"://"+net.JoinHostPort(v.at.Address, v.port)+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	transport := &http.Transport{TLSClientConfig: conf}
	defer transport.CloseIdleConnections()
	answer, err := (&http.Client{Transport: transport, Timeout: patience}).Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, text)
	}
	return err
}

// session opens one on a PostgreSQL, of replication where that is given, and asks it
// something.
func session(t *testing.T, address string, conf *tls.Config, user, replication string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := pgconn.ParseConfig(fmt.Sprintf("postgresql://%s@%s/postgres?sslmode=disable", user, address))
	if err != nil {
		return err
	}
	c.TLSConfig = conf
	ask := "select 1"
	if replication != "" {
		c.RuntimeParams["replication"], ask = replication, "IDENTIFY_SYSTEM"
	}
	conn, err := pgconn.ConnectConfig(ctx, c)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, ask).ReadAll()
	return err
}

func (v *visitors) knockPostgres(t *testing.T) {
	session := func(conf *tls.Config, user, replication string) error {
		return session(t, net.JoinHostPort(v.at.Address, v.port), conf, user, replication)
	}
	for _, replication := range []string{"", "true", "database"} {
		what := fmt.Sprintf(", replication %q", replication)
		letIn(t, "a member"+what, session(v.member, pgrepl.ReplicaRole, replication))
		keptOut(t, "no certificate"+what, session(v.nobody, pgrepl.ReplicaRole, replication), "requires a valid client certificate")
		keptOut(t, "a foreign certificate"+what, session(v.foreign, pgrepl.ReplicaRole, replication), certUnknown)
		keptOut(t, "a runner"+what, session(v.runner, pgrepl.ReplicaRole, replication), "certificate authentication failed")
		keptOut(t, "no TLS"+what, session(nil, pgrepl.ReplicaRole, replication), "pg_hba.conf rejects")
		keptOut(t, "the admin"+what, session(v.member, pgrepl.AdminRole, replication), "pg_hba.conf rejects")
		keptOut(t, "the admin without TLS"+what, session(nil, pgrepl.AdminRole, replication), "pg_hba.conf rejects")
	}
}

func (v *visitors) knockStatus(t *testing.T) {
	letIn(t, "anybody", v.call(nil, "GET", "/status", ""))
	for _, method := range []string{"POST", "PUT", "DELETE"} {
		keptOut(t, method, v.call(nil, method, "/status", "{}"), "405")
	}
	keptOut(t, "a call of the API", v.call(nil, "POST", "/api/v1/set-active", "{}"), "404")
}

func (v *visitors) knockAPI(t *testing.T) {
	calls := map[string]string{
		"GET ping": "", "GET node": "", "GET certificates": "", "GET divergence": "", "GET divergence/x/changes": "",
		"POST detach": `{"epoch":99}`, "POST lend": `{"epoch":99}`, "POST vouch": `{"epoch":99}`, "POST rally": `{}`, "POST claim": `{}`,
		"POST last-write": `{}`, "POST set-active": `{"node":"node3"}`, "POST drill": `{"open":true}`, "POST force": `{}`,
		"POST certificates/renew": `{}`, "POST certificates/sign": `{}`, "POST certificates/trust": `{}`,
	}
	before := v.g.healthy(t, "node1", 3)
	for line, body := range calls {
		method, path, _ := strings.Cut(line, " ")
		path = "/api/v1/" + path
		keptOut(t, line+" without a certificate", v.call(v.nobody, method, path, body), "403 Forbidden")
		keptOut(t, line+" with a foreign certificate", v.call(v.foreign, method, path, body), certUnknown, certBad)
		keptOut(t, line+" with a certificate of no member", v.call(v.runner, method, path, body), "403 Forbidden")
		keptOut(t, line+" without TLS", v.call(nil, method, path, body), "HTTP request to an HTTPS server")
	}
	letIn(t, "a member", v.call(v.member, "GET", "/api/v1/node", ""))
	letIn(t, "a member that asks first", v.call(v.member, "POST", "/api/v1/set-active", `{"node":"node3","check":true}`))
	keptOut(t, "a newcomer without a token", v.call(v.nobody, "POST", "/api/v1/join",
		`{"node":{"name":"node9","address":"127.40.35.99","kind":"runner","version":"test"}}`), "400", "403")
	if after := v.g.healthy(t, "node1", 3); after.Epoch != before.Epoch {
		t.Errorf("the active node changed: epoch %d, then %d", before.Epoch, after.Epoch)
	}
}

func (v *visitors) knockSyncthing(t *testing.T) {
	// A peer says hello; one that is known is told then which folders there are.
	peer := func(conn net.Conn) error {
		if _, err := protocol.ExchangeHello(conn, protocol.Hello{DeviceName: "node3", ClientName: "knock", ClientVersion: "v1", Timestamp: time.Now().UnixNano()}); err != nil {
			return err
		}
		_, err := conn.Read(make([]byte, 1))
		return err
	}
	talks := func(conf *tls.Config) *tls.Config {
		c := conf.Clone()
		c.NextProtos = []string{"bep/1.0"}
		return c
	}
	keptOut(t, "no certificate", v.dial(talks(v.nobody), peer), certNeeded)
	keptOut(t, "a foreign certificate", v.dial(talks(v.foreign), peer), certBad, certUnknown)
	keptOut(t, "a device of no member", v.dial(talks(v.runner), peer))
	keptOut(t, "no TLS", v.dial(nil, peer), "unknown protocol")
	// A peer has one connection.
	init := services.NewExec(config.Paths(v.g.node(t, "node3").Root).InitSocket())
	if err := init.Stop(t.Context(), "understudy-file-sync.service"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a member is let in", func() error { return v.dial(talks(v.member), peer) })
	if err := init.Start(t.Context(), "understudy-file-sync.service"); err != nil {
		t.Fatal(err)
	}
}

// asUser runs a program as root, or as a user who has nothing to do with the cluster.
func asUser(t *testing.T, uid uint32, argv ...string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	command := exec.CommandContext(ctx, argv[0], argv[1:]...)
	command.Dir = "/"
	if uid != 0 {
		command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	out, err := command.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return err
}

const nobody = 65534

func (v *visitors) knockHelper(t *testing.T) {
	socket := filepath.Join(v.at.Root, v.port)
	conn, err := net.Dial("unix", socket)
	if err == nil {
		defer conn.Close()
		_, err = conn.Write([]byte(`{"verb":"none"}` + "\n"))
	}
	answer := make([]byte, 512)
	if err == nil {
		_, err = conn.Read(answer)
	}
	if err == nil && !bytes.Contains(answer, []byte("there is no verb none")) {
		err = fmt.Errorf("it answers %q", answer)
	}
	letIn(t, "root", err)
	if os.Geteuid() != 0 {
		t.Log("not root: nobody else can be played")
		return
	}
	keptOut(t, "another user", asUser(t, nobody, "curl", "--silent", "--show-error", "--unix-socket", socket, "http://helper/"), "exit status 7")
}

func (v *visitors) knockPostgresSocket(t *testing.T) {
	as := func(uid uint32) error {
		return asUser(t, uid, "psql", "-XAtwc", "select 1", "-h", filepath.Dir(filepath.Join(v.at.Root, v.port)), "-U", pgrepl.AdminRole, "-d", "postgres")
	}
	letIn(t, "root", as(0))
	if os.Geteuid() != 0 {
		t.Log("not root: nobody else can be played")
		return
	}
	keptOut(t, "another user", as(nobody), "Peer authentication failed")
}
