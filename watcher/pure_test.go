package watcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

var noon = time.Date(2024, 3, 1, 12, 0, 0, 0, time.UTC)

func TestResultOf(t *testing.T) {
	dial := func(errno syscall.Errno) error {
		return fmt.Errorf("ping node2: %w", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errno)})
	}
	for _, tc := range []struct {
		err  error
		want cluster.ProbeResult
	}{
		{nil, cluster.ProbeAnswered},
		{dial(syscall.ECONNREFUSED), cluster.ProbeRefused},
		{dial(syscall.EHOSTUNREACH), cluster.ProbeSilent},
		{dial(syscall.ENETUNREACH), cluster.ProbeSilent},
		{dial(syscall.ETIMEDOUT), cluster.ProbeSilent},
		{fmt.Errorf("ping node2: %w", context.DeadlineExceeded), cluster.ProbeSilent},
		{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, cluster.ProbeSilent},
		{dial(syscall.ECONNRESET), cluster.ProbeUnknown},
		{dial(syscall.EMFILE), cluster.ProbeUnknown},
		{errors.New("tls: unknown certificate authority"), cluster.ProbeUnknown},
		{errors.New("answered 500"), cluster.ProbeUnknown},
	} {
		if got := resultOf(tc.err); got != tc.want {
			t.Errorf("%v: got %s, want %s", tc.err, got, tc.want)
		}
	}
}

func TestOutsideNeedsSeveralMisses(t *testing.T) {
	var s outsideSeen
	for i, step := range []struct{ ping, want cluster.Tri }{
		{cluster.No, cluster.Unknown}, {cluster.No, cluster.Unknown}, {cluster.No, cluster.No}, {cluster.No, cluster.No},
		{cluster.Yes, cluster.Yes}, {cluster.No, cluster.Unknown}, {cluster.Unknown, cluster.Unknown},
		{cluster.No, cluster.Unknown}, {cluster.No, cluster.Unknown}, {cluster.No, cluster.No},
	} {
		if s = s.next(noon, step.ping); s.reached != step.want {
			t.Errorf("ping %d: got %s, want %s", i, s.reached, step.want)
		}
	}
}

// leadingActive is an active node that has led Raft for long, with two others
// that answer. Cases change one thing of it.
func leadingActive() leadership {
	return leadership{leads: true, active: true, since: noon.Add(-time.Hour), others: []string{"node2", "node3"}}
}

func TestTarget(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*leadership)
		want   string
	}{
		{"leads and is active", func(*leadership) {}, "node2"},
		{"does not lead", func(l *leadership) { l.leads = false }, ""},
		{"is not active", func(l *leadership) { l.active = false }, ""},
		{"nobody else answers", func(l *leadership) { l.others = nil }, ""},
		{"the active node has just changed", func(l *leadership) { l.since = noon.Add(-calmFor + 1) }, ""},
		{"it changed a while ago", func(l *leadership) { l.since = noon.Add(-calmFor) }, "node2"},
		{"moved a moment ago", func(l *leadership) { l.moves = moves{noon.Add(-firstBackoff + 1), "node2", 1} }, ""},
		{"it came back", func(l *leadership) { l.moves = moves{noon.Add(-firstBackoff), "node2", 1} }, "node3"},
		{"it came back from both", func(l *leadership) { l.moves = moves{noon.Add(-2 * firstBackoff), "node3", 2} }, "node2"},
		{"too soon after the second", func(l *leadership) { l.moves = moves{noon.Add(-firstBackoff), "node3", 2} }, ""},
		{"the one tried last has gone", func(l *leadership) {
			l.others, l.moves = []string{"node3"}, moves{noon.Add(-time.Hour), "node2", 1}
		}, "node3"},
		{"there is only the one tried last", func(l *leadership) {
			l.others, l.moves = []string{"node2"}, moves{noon.Add(-time.Hour), "node2", 1}
		}, "node2"},
	} {
		l := leadingActive()
		tc.change(&l)
		if got := l.target(noon, calmFor); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestBackoff(t *testing.T) {
	for count, want := range map[int]time.Duration{
		1: firstBackoff, 2: 2 * firstBackoff, 3: 4 * firstBackoff, 6: longBackoff, 1 << 40: longBackoff,
	} {
		if got := backoff(count); got != want {
			t.Errorf("after %d: got %s, want %s", count, got, want)
		}
	}
	m := moves{}.next(noon, "node2").next(noon.Add(time.Minute), "node3")
	if want := (moves{noon.Add(time.Minute), "node3", 2}); m != want {
		t.Errorf("got %v, want %v", m, want)
	}
	if m = m.next(noon.Add(time.Hour), "node2"); m.count != 1 {
		t.Errorf("after an hour: count %d, want 1", m.count)
	}
}

func TestPoints(t *testing.T) {
	gateway := netip.MustParseAddr("10.0.0.1")
	o := cluster.Options{"ping_targets": "10.0.0.1, 10.9.9.9"}
	if got, want := points(gateway, o), []netip.Addr{gateway, netip.MustParseAddr("10.9.9.9")}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := points(netip.Addr{}, nil); got != nil {
		t.Errorf("without anything: %v", got)
	}
}

func TestGateways(t *testing.T) {
	const header = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
	for text, want := range map[string]string{
		header: "",
		header + "eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\neth0 000200C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n":       "192.0.2.1",
		header + "eth1 00000000 FE0200C0 0003 0 0 200 00000000 0 0 0\neth0 00000000 010200C0 0003 0 0 100 00000000 0 0 0\n":   "192.0.2.1",
		header + "ppp0 00000000 00000000 0001 0 0 0 00000000 0 0 0\n":                                                         "",
		header + "eth0 00000000 010200C0 0002 0 0 0 00000000 0 0 0\n":                                                         "",
		header + "tun0 00000000 010200C0 0003 0 0 0 00000080 0 0 0\n":                                                         "",
		header + "eth0 00000000 nonsense 0003 0 0 0 00000000 0 0 0\n" + "eth0 00000000 010200C0 0003 0 0 7 00000000 0 0 0 \n": "192.0.2.1",
	} {
		got, ok := gateway4(text)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("gateway of %q: %v %v, want %q", text, got, ok, want)
		}
	}
	zero := "00000000000000000000000000000000"
	for text, want := range map[string]string{
		"": "",
		zero + " 00 " + zero + " 00 20010db8000000000000000000000001 00000400 00000002 00000000 00000003 eth0\n": "2001:db8::1",
		zero + " 00 " + zero + " 00 fe800000000000000000000000000001 00000400 00000002 00000000 00000003 eth0\n": "fe80::1%eth0",
		zero + " 00 " + zero + " 00 " + zero + " ffffffff 00000001 00000000 00200200 lo\n":                       "",
		zero + " 40 " + zero + " 00 20010db8000000000000000000000001 00000400 00000002 00000000 00000003 eth0\n": "",
	} {
		got, ok := gateway6(text)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("gateway of %q: %v %v, want %q", text, got, ok, want)
		}
	}
}

// The real thing, on the loopback interface: by whatever means this process is
// permitted.
func TestReachLoopback(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	host := netip.MustParseAddr("127.10.5.1")
	if got := (echo{}).Reach(ctx, host); got != cluster.Yes {
		t.Errorf("reach %s: %s, want yes", host, got)
	}
	if got := knock(ctx, host); got != cluster.Yes {
		t.Errorf("knock at %s: %s, want yes, because the connection is refused", host, got)
	}
	past, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	if got := knock(past, host); got != cluster.Unknown {
		t.Errorf("knock without time: %s, want unknown", got)
	}
	if got := unreached(os.NewSyscallError("sendto", syscall.ENETUNREACH)); got != cluster.No {
		t.Errorf("no route: %s, want no", got)
	}
}
