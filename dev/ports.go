package dev

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/understudy-ha/understudy/config"
)

// ports are what every node listens on, with the example manager.
func ports() []int {
	numbers := []int{PortNotes}
	for _, p := range config.Defaults().Ports() {
		numbers = append(numbers, p.Number)
	}
	return numbers
}

// checkPorts returns an error that names every port of an address that is in
// use, and by what.
func checkPorts(address string) error {
	var taken []error
	for _, port := range ports() {
		listener, err := net.Listen("tcp4", net.JoinHostPort(address, strconv.Itoa(port)))
		switch {
		case err == nil:
			_ = listener.Close()
		case errors.Is(err, syscall.EADDRINUSE):
			taken = append(taken, fmt.Errorf("port %d on %s is in use by %s; stop that, or choose another --first-address", port, address, listenerOf(address, port)))
		default:
			taken = append(taken, fmt.Errorf("port %d on %s cannot be used: %w", port, address, err))
		}
	}
	return errors.Join(taken...)
}

// listenerOf describes the process that listens on a port of an address, or of
// all addresses.
func listenerOf(address string, port int) string {
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if inode, ok := listening(line, address, port); ok {
				return processWithSocket(inode)
			}
		}
	}
	return "a process that cannot be seen"
}

// listening reads a line of /proc/net/tcp: "sl local_address rem_address st ...
// inode", addresses in hexadecimal, each 32 bits in the machine's order.
func listening(line, address string, port int) (inode string, ok bool) {
	f := strings.Fields(line)
	if len(f) < 10 || f[3] != "0A" {
		return "", false
	}
	host, hexPort, _ := strings.Cut(f[1], ":")
	if n, err := strconv.ParseUint(hexPort, 16, 16); err != nil || int(n) != port {
		return "", false
	}
	raw, err := hex.DecodeString(host)
	if err != nil {
		return "", false
	}
	if strings.Trim(host, "0") == "" {
		return f[9], true
	}
	// Of an IPv6 address, the last four bytes: it may be an IPv4 one in it.
	last := raw[len(raw)-4:]
	slices.Reverse(last)
	a, _ := netip.AddrFromSlice(last)
	return f[9], a.String() == address
}

func processWithSocket(inode string) string {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && to == "socket:["+inode+"]" {
			pid := strings.Split(link, "/")[2]
			name, _ := os.ReadFile("/proc/" + pid + "/comm")
			return fmt.Sprintf("process %s (%s)", pid, strings.TrimSpace(string(name)))
		}
	}
	return "a process of another user"
}
