package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/dev"
)

// TestPorts knocks on every door that docs/security.md lists, as somebody whom it must
// not let in and as a member, and looks whether there are others.
func TestPorts(t *testing.T) {
	t.Parallel()
	g := up(t, "po", "127.40.35.11", 3)
	g.healthy(t, "node1", 3)
	listed := doors(t)
	v := visit(t, g)
	knocks := map[string]func(*visitors, *testing.T){
		"5432": (*visitors).knockPostgres, "8008": (*visitors).knockStatus, "8009": (*visitors).knockAPI,
		"8300": (*visitors).knockServers, "8301": (*visitors).knockGossip, "8500": (*visitors).knockConsul,
		"8600": (*visitors).knockDNS, "22000": (*visitors).knockSyncthing,
		"/run/understudy/postgres-helper.sock":     (*visitors).knockHelper,
		"/run/understudy/postgresql/.s.PGSQL.5432": (*visitors).knockPostgresSocket,
		"/run/postgresql/.s.PGSQL.5432":            (*visitors).knockPostgresSocket,
	}
	if a, b := slices.Sorted(maps.Keys(knocks)), slices.Sorted(maps.Keys(listed)); !slices.Equal(a, b) {
		t.Errorf("the test knows the ports %v, security.md %v", a, b)
	}
	for _, n := range g.nodes {
		t.Run("no other is open on "+n.Name, func(t *testing.T) { g.opens(t, n, listed) })
	}
	for port := range listed {
		if knock := knocks[port]; knock != nil {
			t.Run(strings.ReplaceAll(port, "/", "_"), func(t *testing.T) { v.port = port; knock(v, t) })
		}
	}
	g.healthy(t, "node1", 3)
}

var doorRow = regexp.MustCompile("(?m)^\\| `?([0-9]+|/[^`|]+)`? \\| ([^|]+) \\|")

// doors reads the table of security.md: the protocols by port, or by the path of a
// socket.
func doors(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "<!-- begin doors")
	table, _, _ = strings.Cut(table, "<!-- end doors")
	found := map[string][]string{}
	for _, m := range doorRow.FindAllStringSubmatch(table, -1) {
		for _, protocol := range []string{"TCP", "UDP", "Unix"} {
			if strings.Contains(m[2], protocol) {
				found[m[1]] = append(found[m[1]], strings.ToLower(protocol))
			}
		}
	}
	return found
}

// opens compares what the processes of a node listen on with the table.
func (g *group) opens(t *testing.T, n dev.NodeInfo, listed map[string][]string) {
	t.Helper()
	var want []string
	for port, protocols := range listed {
		for _, p := range protocols {
			if p == "unix" {
				want = append(want, p+" "+filepath.Join(n.Root, port))
			} else {
				want = append(want, p+" "+n.Address+":"+port)
			}
		}
	}
	// What stands for systemd on a dev node, and the example manager.
	others := []string{"unix " + filepath.Join(n.Root, "run/understudy/init.sock"), "tcp " + n.Address + ":8080"}
	got := slices.DeleteFunc(listening(t, n.Pids["init"]), func(s string) bool { return slices.Contains(others, s) })
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("open are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// listening is what a process and those that come from it listen on.
func listening(t *testing.T, init int) (all []string) {
	t.Helper()
	inodes := socketsOf(t, init)
	for _, protocol := range []string{"tcp", "tcp6", "udp", "udp6"} {
		// "sl local_address rem_address st ... inode": st is 0A of a TCP socket that
		// listens, 07 of a UDP socket that takes packets of anybody.
		state := map[bool]string{true: "0A", false: "07"}[protocol[:3] == "tcp"]
		for _, f := range procNet(t, protocol) {
			if len(f) > 9 && f[3] == state && inodes[f[9]] {
				all = append(all, protocol[:3]+" "+addrPort(t, f[1]))
			}
		}
	}
	// "Num RefCount Protocol Flags Type St Inode Path": flag 0x10000 is of one that
	// listens. Abstract sockets begin with "@".
	for _, f := range procNet(t, "unix") {
		if len(f) > 7 && f[3] == "00010000" && inodes[f[6]] {
			all = append(all, "unix "+f[7])
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func procNet(t *testing.T, table string) (rows [][]string) {
	t.Helper()
	text, err := os.ReadFile("/proc/net/" + table)
	if errors.Is(err, fs.ErrNotExist) { // without IPv6
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		rows = append(rows, strings.Fields(line))
	}
	return rows
}

// addrPort reads an address of /proc/net, whose 32-bit words are in the machine's order.
func addrPort(t *testing.T, text string) string {
	t.Helper()
	host, port, _ := strings.Cut(text, ":")
	number, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		t.Fatal(err)
	}
	var raw []byte
	for i := 0; i+8 <= len(host); i += 8 {
		word, err := strconv.ParseUint(host[i:i+8], 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		raw = append(raw, byte(word), byte(word>>8), byte(word>>16), byte(word>>24))
	}
	a, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(a.Unmap(), uint16(number)).String()
}

// socketsOf are the inodes of all sockets of a process and of those that come from it.
func socketsOf(t *testing.T, init int) map[string]bool {
	t.Helper()
	parents := map[int]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		// "pid (name) state ppid ...": the name may hold anything.
		_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')'):]), " ")
		pid, _ := strconv.Atoi(strings.Split(file, "/")[2])
		parents[pid], _ = strconv.Atoi(strings.Fields(rest)[1])
	}
	inodes := map[string]bool{}
	for pid := range parents {
		p := pid
		for p != init && p > 1 {
			p = parents[p]
		}
		if p != init {
			continue
		}
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, l := range links {
			to, _ := os.Readlink(l)
			if inode, ok := strings.CutPrefix(to, "socket:["); ok {
				inodes[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	return inodes
}
