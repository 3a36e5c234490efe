package dev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/services/supervisor"
)

// This binary stands in for understudy, whose dev commands are run from it, and
// for the programs of units.
func TestMain(m *testing.M) {
	var err error
	switch {
	case os.Getenv("UNDERSTUDY_TEST_ROLE") == "talk":
		err = talk()
	case len(os.Args) > 1 && os.Args[1] == "dev":
		app := &cli.App{Commands: []*cli.Command{Commands()}}
		err = app.Run(os.Args)
	case len(os.Args) > 1 && os.Args[1] == "--root":
		err = standIn(os.Args[2], os.Args[3:])
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// standIn takes the operator's commands, writes them down, and fails where a
// file says so. What they do is tested where they are.
func standIn(root string, args []string) error {
	dir := filepath.Dir(root)
	log, err := os.OpenFile(filepath.Join(dir, "commands"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	fmt.Fprintln(log, filepath.Base(root), strings.Join(args, " "))
	if _, err := os.Stat(filepath.Join(dir, "fail")); err == nil && args[1] == "join" {
		return errors.New("no disk")
	}
	if args[1] == "token" {
		fmt.Println(`{"token":"secret"}`)
	} else {
		fmt.Println("done")
	}
	return nil
}

// tempDir is a folder that PostgreSQL's user can enter.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "us-dev-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// binDir is a folder of our binaries: all of them this one.
func binDir(t *testing.T) string {
	t.Helper()
	dir := tempDir(t)
	for _, name := range []string{"understudy", "check-runner", "consul-watcher", "handler-runner", "file-sync", "postgres-helper", "notes", "consul"} {
		if err := os.Symlink(os.Args[0], filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// bare makes a cluster whose nodes run nothing but the units that are given, by
// name and text, in which ADDRESS and ROOT stand for the node's.
func bare(t *testing.T, first string, nodes int, units func(n Node) map[string]string) *Cluster {
	t.Helper()
	dir := tempDir(t)
	list, err := newNodes(dir, nodes, 0, first)
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{Dir: dir, Bin: binDir(t), Nodes: list}
	if err := c.save(); err != nil {
		t.Fatal(err)
	}
	for _, n := range list {
		l := n.layout()
		for _, d := range []string{l.Units, l.Log} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for name, text := range units(n) {
			text = strings.NewReplacer("ADDRESS", n.Address, "ROOT", n.Root).Replace(text)
			if err := os.WriteFile(filepath.Join(l.Units, name), []byte(text+"[Install]\nWantedBy=multi-user.target\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := supervisor.Enable(l.Units, name); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Cleanup(func() {
		if err := Down(context.Background(), dir, false); err != nil {
			t.Errorf("down: %v", err)
		}
	})
	for _, n := range list {
		if err := c.start(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// talkPort is where talkers listen.
const talkPort = "7001"

// heard is what a talker has sent, and what it has heard of the other: the last
// number by datagram and over one long connection, and how many new connections it
// has accepted.
type heard struct {
	Sent     int `json:"sent"`
	Datagram int `json:"datagram"`
	Stream   int `json:"stream"`
	Accepted int `json:"accepted"`
}

// talker is a unit that counts aloud to a peer in three ways, never binding its own
// address, as PostgreSQL and others do not, and keeps what it hears in a file.
type talker struct {
	own, peer, file string // addresses with ports

	mu sync.Mutex
	heard
}

func (k *talker) change(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
}

// talk is the program of a talker.
func talk() error {
	k := &talker{
		own: net.JoinHostPort(os.Getenv("TALK_OWN"), talkPort), peer: net.JoinHostPort(os.Getenv("TALK_PEER"), talkPort),
		file: os.Getenv("TALK_FILE"),
	}
	packets, err := net.ListenPacket("udp4", k.own)
	if err != nil {
		return err
	}
	streams, err := net.Listen("tcp4", k.own)
	if err != nil {
		return err
	}
	numbers := make(chan int, 1024)
	go k.hearPackets(packets)
	go k.hearStreams(streams)
	go k.sayOnStream(numbers)
	go k.knock()
	return k.count(numbers)
}

func (k *talker) hearPackets(packets net.PacketConn) {
	buffer := make([]byte, 64)
	for {
		n, _, err := packets.ReadFrom(buffer)
		if err != nil {
			return
		}
		k.change(func() { _, _ = fmt.Sscan(string(buffer[:n]), &k.Datagram) })
	}
}

func (k *talker) hearStreams(streams net.Listener) {
	for {
		conn, err := streams.Accept()
		if err != nil {
			return
		}
		k.change(func() { k.Accepted++ })
		go func() {
			defer conn.Close()
			for number := 0; ; {
				if _, err := fmt.Fscanln(conn, &number); err != nil {
					return
				}
				k.change(func() { k.Stream = number })
			}
		}()
	}
}

// sayOnStream sends numbers over one connection that it keeps.
func (k *talker) sayOnStream(numbers <-chan int) {
	for {
		conn, err := net.Dial("tcp4", k.peer)
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		for n := range numbers {
			fmt.Fprintln(conn, n)
		}
	}
}

// knock makes new connections.
func (k *talker) knock() {
	for {
		if conn, err := net.DialTimeout("tcp4", k.peer, 100*time.Millisecond); err == nil {
			_ = conn.Close()
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// count sends ever greater numbers, and keeps what was heard meanwhile.
func (k *talker) count(numbers chan<- int) error {
	socket, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		return err
	}
	to, err := net.ResolveUDPAddr("udp4", k.peer)
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		_, _ = socket.WriteTo([]byte(fmt.Sprint(n)), to)
		select {
		case numbers <- n:
		default:
		}
		var text []byte
		k.change(func() { k.Sent = n; text, err = json.Marshal(k.heard) })
		if err != nil {
			return err
		}
		if err := os.WriteFile(k.file+".new", text, 0o644); err != nil {
			return err
		}
		if err := os.Rename(k.file+".new", k.file); err != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}
