package cli

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/node"
)

// A command says why nobody believes its host, and what to do.
func TestWarnOfCertificate(t *testing.T) {
	d := certs.Dir(filepath.Join(t.TempDir(), "ssl"))
	if err := d.NewCA("c1"); err != nil {
		t.Fatal(err)
	}
	csr, err := d.Request("alpha", "10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := d.Sign(csr, "alpha", "10.0.0.1", cluster.Manager)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := d.CA()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Install(ca, cert); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		kind cluster.Kind
		off  time.Duration // from now
		want string
	}{
		"valid":              {cluster.Manager, 0, ""},
		"the clock went":     {cluster.Manager, -2 * time.Hour, "is the clock of this host right?"},
		"expired":            {cluster.Manager, 3 * 365 * 24 * time.Hour, "certs rotate --offline' makes a new one"},
		"expired, on runner": {cluster.Runner, 3 * 365 * 24 * time.Hour, "nodes remove alpha' on another member"},
	} {
		var said strings.Builder
		h := &node.Host{Certs: d, Record: node.Record{Node: cluster.Node{Name: "alpha", Kind: c.kind}}}
		warnOfCertificate(&said, h, time.Now().Add(c.off))
		if got := said.String(); !strings.Contains(got, c.want) || c.want == "" && got != "" || c.want != "" && !strings.Contains(got, "alpha") {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
