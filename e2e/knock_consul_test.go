package e2e

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/registry"
)

// The first byte of a connection to a Consul server says what follows: see
// agent/pool/conn.go of Consul.
const consulRPC, consulRaft, consulTLS = 0, 1, 3

func (v *visitors) knockServers(t *testing.T) {
	// The net/rpc of Consul in MessagePack: a header, and an empty body.
	const ping = "Status.Ping"
	header := "\x82\xadServiceMethod\xab" + ping + "\xa3Seq\x01" + "\x80"
	rpc := func(conn net.Conn) error {
		if _, err := conn.Write(append([]byte{consulRPC}, header...)); err != nil {
			return err
		}
		answer := make([]byte, 512)
		n, err := conn.Read(answer)
		if err == nil && !bytes.Contains(answer[:n], []byte(ping)) {
			err = fmt.Errorf("it answers %q", answer[:n])
		}
		return err
	}
	encrypted := func(conf *tls.Config, talk func(net.Conn) error) error {
		return v.dial(nil, func(conn net.Conn) error {
			if _, err := conn.Write([]byte{consulTLS}); err != nil {
				return err
			}
			return talk(tls.Client(conn, conf))
		})
	}
	// A Raft server answers nothing to a connection on which nobody asks.
	raft := func(conn net.Conn) error {
		if _, err := conn.Write([]byte{consulRaft}); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		_, err := conn.Read(make([]byte, 1))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		return err
	}
	letIn(t, "a member", encrypted(v.member, rpc))
	letIn(t, "a manager, to Raft", encrypted(v.member, raft))
	keptOut(t, "a runner, to Raft", encrypted(v.runner, raft))
	for what, talk := range map[string]func(net.Conn) error{"": rpc, ", to Raft": raft} {
		keptOut(t, "no certificate"+what, encrypted(v.nobody, talk), certNeeded)
		keptOut(t, "a foreign certificate"+what, encrypted(v.foreign, talk), certUnknown, certBad)
		keptOut(t, "no TLS"+what, v.dial(nil, talk))
	}
}

func (v *visitors) knockConsul(t *testing.T) {
	path := "/v1/kv/understudy?keys&token=" + v.token(t)
	letIn(t, "a member with the operator's token", v.call(v.member, "GET", path, ""))
	keptOut(t, "a member without a token", v.call(v.member, "PUT", "/v1/kv/understudy/mine", "x"), "403")
	keptOut(t, "no certificate", v.call(v.nobody, "GET", path, ""), certNeeded)
	keptOut(t, "a foreign certificate", v.call(v.foreign, "GET", path, ""), certUnknown, certBad)
	keptOut(t, "no TLS", v.call(nil, "GET", path, ""), "HTTP request to an HTTPS server")
}

// token is what the commands on node1 show to Consul.
func (v *visitors) token(t *testing.T) string {
	t.Helper()
	secret, err := os.ReadFile(config.Paths(v.at.Root).Operator())
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(secret))
}

func (v *visitors) knockDNS(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		ask := func(name string) error {
			m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true},
				Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
			question, err := m.Pack()
			if err != nil {
				return err
			}
			answer, err := exchange(network, net.JoinHostPort(v.at.Address, v.port), question)
			if err != nil {
				return err
			}
			if err := m.Unpack(answer); err != nil {
				return err
			}
			if m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 1 || m.RecursionAvailable {
				return fmt.Errorf("%s: %v", m.RCode, m.Answers)
			}
			return nil
		}
		letIn(t, "a program of this host, over "+network, ask(registry.DNSName(cluster.RoleActive)+"."))
		keptOut(t, "a question about others, over "+network, ask("example.com."), "Refused")
	}
}

// exchange sends one DNS message and reads one.
func exchange(network, address string, question []byte) ([]byte, error) {
	conn, err := net.DialTimeout(network, address, patience)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	answer := make([]byte, 2048)
	if network == "tcp" { // its length comes first
		question = append([]byte{byte(len(question) >> 8), byte(len(question))}, question...)
	}
	if _, err := conn.Write(question); err != nil {
		return nil, err
	}
	if network == "tcp" {
		if _, err := io.ReadFull(conn, answer[:2]); err != nil {
			return nil, err
		}
		answer = answer[:int(answer[0])<<8|int(answer[1])]
		_, err = io.ReadFull(conn, answer)
		return answer, err
	}
	n, err := conn.Read(answer)
	return answer[:n], err
}

// gossipKey is that of the cluster.
func (v *visitors) gossipKey(t *testing.T) string {
	t.Helper()
	key, err := certs.Dir(config.Paths(v.at.Root).SSL).GossipKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (v *visitors) knockGossip(t *testing.T) {
	wrong := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))
	good := v.gossipKey(t)
	letIn(t, "a packet with the key", v.pingGossip(good))
	keptOut(t, "a packet with another key", v.pingGossip(wrong), "timeout")
	keptOut(t, "a packet in clear", v.pingGossip(""), "timeout")

	keptOut(t, "an agent with another key", v.agent(t, wrong, nil), "decrypt")
	keptOut(t, "an agent without a key", v.agent(t, "", nil), "encrypt")
	letIn(t, "an agent with the key", v.agent(t, good, func(a *agent) error {
		// It has no certificate: it sees the gossip, and nothing that Consul keeps.
		var err error
		eventually(t, "it has found the servers", func() error {
			if _, err = a.call("GET", "/v1/kv/understudy?keys"); err != nil && strings.Contains(err.Error(), "No known Consul servers") {
				return err
			}
			return nil
		})
		keptOut(t, "an agent with the key, by the servers", err, "rpc error")
		return nil
	}))
	var members []struct{ Name string }
	if err := json.Unmarshal([]byte(v.members(t)), &members); err != nil || len(members) < 3 {
		t.Fatal(members, err)
	}
	for _, m := range members {
		if m.Name == "stranger" {
			t.Error("the agent without the right key is a member")
		}
	}
}

// members is what node1 knows of all in the gossip.
func (v *visitors) members(t *testing.T) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: v.member, DisableKeepAlives: true}, Timeout: patience}
	answer, err := client.Get(v.at.ConsulURL + "/v1/agent/members?token=" + v.token(t))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// pingGossip sends the packet by which one member of the gossip looks whether another
// is there: see net.go and security.go of hashicorp/memberlist.
func (v *visitors) pingGossip(key string) error {
	packet := []byte("\x00\x82\xa5SeqNo\x01\xa4Node\xa5node1")
	if key != "" {
		raw, err := base64.StdEncoding.DecodeString(key)
		if err != nil {
			return err
		}
		block, err := aes.NewCipher(raw)
		if err != nil {
			return err
		}
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			return err
		}
		nonce := make([]byte, gcm.NonceSize())
		_, _ = rand.Read(nonce) // never fails
		packet = gcm.Seal(append([]byte{1}, nonce...), nonce, packet, nil)
	}
	conn, err := net.Dial("udp", net.JoinHostPort(v.at.Address, v.port))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write(packet); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 512))
	return err
}

// agent is a Consul of somebody else.
type agent struct{ url string }

func (a *agent) call(method, path string) (string, error) {
	request, err := http.NewRequest(method, a.url+path, nil)
	if err != nil {
		return "", err
	}
	answer, err := (&http.Client{Timeout: 2 * patience}).Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, text)
	}
	return string(text), err
}

// agent runs a Consul agent with a key for the gossip, or none, that joins that of
// node1, and then does what it is told. It leaves in the end.
func (v *visitors) agent(t *testing.T, key string, do func(*agent) error) error {
	t.Helper()
	dir := t.TempDir()
	name := "stranger"
	if key == v.gossipKey(t) {
		name = "keyholder"
	}
	conf := registry.AgentConfig{Name: name, Address: "127.40.35.98", Kind: cluster.Runner, DataDir: filepath.Join(dir, "data"),
		Join: []string{"127.40.35.97"}, GossipKey: key} // nobody is there: we say when to join
	text, err := conf.JSON()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "consul.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.Command(filepath.Join(bin, "consul"), "agent", "-config-file", file)
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = command.Wait() }()
	defer func() { _ = command.Process.Kill() }()
	a := &agent{"http://" + conf.APIAddress()}
	eventually(t, "the agent answers", func() error { _, err := a.call("GET", "/v1/agent/self"); return err })
	if _, err := a.call("PUT", "/v1/agent/join/"+v.at.Address); err != nil {
		return err
	}
	if do != nil {
		err = do(a)
	}
	_, left := a.call("PUT", "/v1/agent/leave")
	return errors.Join(err, left)
}
