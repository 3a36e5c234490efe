package membership

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
)

// A manager whose clock is off, as seen from here. Ours cannot be set in a test, so it
// is the other's that is.
func TestClocks(t *testing.T) {
	d := certs.Dir(filepath.Join(t.TempDir(), "ssl"))
	if err := d.NewCA("c1"); err != nil {
		t.Fatal(err)
	}
	csr, err := d.Request("alpha", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := d.Sign(csr, "alpha", "127.0.0.1", cluster.Manager)
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
	pin, err := d.Pin()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		off    time.Duration // of the manager's clock
		err    string
		warned string
	}{
		"in step":                {0, "", ""},
		"within what may be":     {-2 * time.Second, "", ""},
		"a minute ahead":         {-time.Minute, "", "the clock of this host is 1m"},
		"a minute behind":        {time.Minute, "", " behind that of "},
		"just within":            {4*time.Minute + 50*time.Second, "", " behind that of "},
		"six minutes ahead":      {-6 * time.Minute, " ahead of that of ", ""},
		"an hour ahead":          {-time.Hour, "the clock of this host is 1h", ""},
		"an hour behind":         {time.Hour, "the clock of this host is 1h", ""},
		"not set since the boot": {20 * 365 * 24 * time.Hour, " behind that of ", ""},
	} {
		t.Run(name, func(t *testing.T) {
			manager := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Date", time.Now().Add(c.off).UTC().Format(http.TimeFormat))
				w.WriteHeader(http.StatusForbidden) // no certificate
			}))
			conf, err := d.ServerTLS()
			if err != nil {
				t.Fatal(err)
			}
			manager.Listener = tls.NewListener(manager.Listener, conf) // StartTLS has a certificate of its own
			manager.Start()
			defer manager.Close()
			said := ""
			j := joining{contact: manager.Listener.Addr().String(), pin: pin, progress: func(s string) { said += s }}
			err = j.clocks(t.Context())
			switch {
			case c.err == "" && err != nil, c.err != "" && (!errors.Is(err, ErrClock) || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), "set it")):
				t.Errorf("%v", err)
			case (c.warned == "") != (said == "") || !strings.Contains(said, c.warned):
				t.Errorf("it said %q", said)
			}
		})
	}
}
