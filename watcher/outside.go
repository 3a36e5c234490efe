package watcher

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/understudy-ha/understudy/cluster"
)

// echo reaches hosts by ICMP echo, over an unprivileged ping socket where
// net.ipv4.ping_group_range admits this process, else over a raw socket where it
// has CAP_NET_RAW. Without either it opens a TCP connection, and to be refused
// counts as reached.
type echo struct{}

// Reach implements Pinger. It needs a ctx with a deadline.
func (echo) Reach(ctx context.Context, host netip.Addr) cluster.Tri {
	for _, raw := range []bool{false, true} {
		reached, err := ping(ctx, host, raw)
		if !errors.Is(err, os.ErrPermission) && !errors.Is(err, syscall.EPROTONOSUPPORT) {
			return reached
		}
	}
	return knock(ctx, host)
}

// ping sends one echo request and waits for its reply. The error is that of
// opening the socket.
func ping(ctx context.Context, host netip.Addr, raw bool) (cluster.Tri, error) {
	network, local, protocol := "udp4", "0.0.0.0", 1
	var request, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if host.Is6() {
		network, local, protocol = "udp6", "::", 58
		request, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	var to net.Addr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(host, 0))
	if raw {
		network = map[string]string{"udp4": "ip4:icmp", "udp6": "ip6:ipv6-icmp"}[network]
		to = &net.IPAddr{IP: host.AsSlice(), Zone: host.Zone()}
	}
	conn, err := icmp.ListenPacket(network, local)
	if err != nil {
		return cluster.Unknown, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return cluster.Unknown, nil
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	token := rand.Text() // tells our reply from those of others
	message := icmp.Message{Type: request, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: 1, Data: []byte(token)}}
	packet, err := message.Marshal(nil)
	if err != nil {
		return cluster.Unknown, nil
	}
	if _, err := conn.WriteTo(packet, to); err != nil {
		return unreached(err), nil
	}
	return await(ctx, conn, protocol, reply, token), nil
}

// await reads until the reply with the token has come.
func await(ctx context.Context, conn *icmp.PacketConn, protocol int, reply icmp.Type, token string) cluster.Tri {
	buffer := make([]byte, 1500)
	for {
		n, _, err := conn.ReadFrom(buffer)
		if err != nil {
			if errors.Is(ctx.Err(), context.Canceled) {
				return cluster.Unknown
			}
			return unreached(err)
		}
		m, err := icmp.ParseMessage(protocol, buffer[:n])
		if err != nil || m.Type != reply {
			continue
		}
		if body, ok := m.Body.(*icmp.Echo); ok && string(body.Data) == token {
			return cluster.Yes
		}
	}
}

// unreached is what an error says: No for silence and for no route, and nothing
// for anything else.
func unreached(err error) cluster.Tri {
	var timeout net.Error
	if noRoute(err) || errors.As(err, &timeout) && timeout.Timeout() {
		return cluster.No
	}
	return cluster.Unknown
}

// knock opens a TCP connection to the discard port, where nobody listens. A
// firewall may drop it, so silence proves nothing.
func knock(ctx context.Context, host netip.Addr) cluster.Tri {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host.String(), "9"))
	switch {
	case err == nil:
		conn.Close()
		return cluster.Yes
	case errors.Is(err, syscall.ECONNREFUSED):
		return cluster.Yes
	case noRoute(err):
		return cluster.No
	}
	return cluster.Unknown
}

// defaultGateway reads the kernel's routing tables, IPv4 before IPv6.
func defaultGateway() (netip.Addr, bool) {
	if text, err := os.ReadFile("/proc/net/route"); err == nil {
		if gateway, ok := gateway4(string(text)); ok {
			return gateway, true
		}
	}
	text, err := os.ReadFile("/proc/net/ipv6_route")
	if err != nil {
		return netip.Addr{}, false
	}
	return gateway6(string(text))
}

// Flags of a route, from Linux's include/uapi/linux/route.h.
const (
	routeUp      = 0x1
	routeGateway = 0x2
)

// gateway4 finds the default route with the lowest metric in the text of
// /proc/net/route: fields Iface Destination Gateway Flags RefCnt Use Metric
// Mask, addresses in hexadecimal and in the order of the machine's bytes.
func gateway4(text string) (best netip.Addr, found bool) {
	lowest := uint64(0)
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
			continue
		}
		flags, err1 := strconv.ParseUint(f[3], 16, 32)
		metric, err2 := strconv.ParseUint(f[6], 10, 32)
		address, err3 := strconv.ParseUint(f[2], 16, 32)
		if err1 != nil || err2 != nil || err3 != nil || flags&routeUp == 0 || flags&routeGateway == 0 {
			continue
		}
		if !found || metric < lowest {
			var b [4]byte
			binary.NativeEndian.PutUint32(b[:], uint32(address))
			best, lowest, found = netip.AddrFrom4(b), metric, true
		}
	}
	return best, found
}

// gateway6 does the same for /proc/net/ipv6_route: destination, its prefix,
// source, its prefix, next hop, metric, references, uses, flags, interface, all
// in hexadecimal and in network order.
func gateway6(text string) (best netip.Addr, found bool) {
	lowest := uint64(0)
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 10 || f[1] != "00" || strings.Trim(f[0], "0") != "" {
			continue
		}
		flags, err1 := strconv.ParseUint(f[8], 16, 32)
		metric, err2 := strconv.ParseUint(f[5], 16, 32)
		hop, err3 := hex.DecodeString(f[4])
		address, ok := netip.AddrFromSlice(hop)
		if err1 != nil || err2 != nil || err3 != nil || !ok || flags&routeUp == 0 || flags&routeGateway == 0 {
			continue
		}
		if address.IsLinkLocalUnicast() {
			address = address.WithZone(f[9])
		}
		if !found || metric < lowest {
			best, lowest, found = address, metric, true
		}
	}
	return best, found
}
