package certs

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"
)

// What is wrong with a file of this folder names it, and what to do.
func TestSpoiltFiles(t *testing.T) {
	ca := newCA(t)
	for name, c := range map[string]struct {
		spoil func(d Dir) error
		do    func(d Dir) error
		words []string
	}{
		"no certificate": {func(d Dir) error { return os.Remove(d.CertFile()) }, pairOf, []string{"node.crt", "no such file", "certs rotate --offline"}},
		"half a certificate": {func(d Dir) error { return os.WriteFile(d.CertFile(), []byte("half"), 0o644) }, pairOf,
			[]string{"node.crt", "PEM", "certs rotate --offline", "join again"}},
		"half a certificate, shown": {func(d Dir) error { return os.WriteFile(d.CertFile(), []byte("half"), 0o644) }, infoErr,
			[]string{"node.crt", "PEM", "certs rotate --offline"}},
		"half a key": {func(d Dir) error { return os.WriteFile(d.KeyFile(), []byte("half"), 0o644) }, func(d Dir) error { _, err := d.Request("n1", "127.0.0.2"); return err },
			[]string{"node.key", "PEM", "delete it", "certs rotate --offline"}},
		"half a CA": {func(d Dir) error { return os.WriteFile(d.CAFile(), []byte("half"), 0o644) }, func(d Dir) error { _, err := d.ServerTLS(); return err },
			[]string{"ca.crt", "PEM", "copy it from another member"}},
		"half a CA key": {func(d Dir) error { return os.WriteFile(d.CAKeyFile(), []byte("half"), 0o600) }, func(d Dir) error { _, err := d.Sign(nil, "n1", "127.0.0.2", ""); return err },
			[]string{"ca.key", "PEM", "copy it from another manager"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := joined(t, ca, "n1", "127.0.0.2", time.Now())
			check(t, c.spoil(d))
			err := c.do(d)
			for _, w := range c.words {
				if err == nil || !strings.Contains(err.Error(), w) {
					t.Errorf("%v; want %q", err, w)
				}
			}
		})
	}
}

func pairOf(d Dir) error { _, err := d.Pair(); return err }

func infoErr(d Dir) error { _, err := d.Info(); return err }

// Root may read everything, so the error is made by hand.
func TestMayNotBeRead(t *testing.T) {
	denied := &fs.PathError{Op: "open", Path: "/etc/understudy/cluster-ssl/node.key", Err: fs.ErrPermission}
	err := mayNot(denied, denied.Path)
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "sudo") || !strings.Contains(err.Error(), "chown -R understudy:understudy /etc/understudy/cluster-ssl") {
		t.Errorf("%v", err)
	}
	missing := &fs.PathError{Op: "open", Path: "x", Err: fs.ErrNotExist}
	if mayNot(missing, "x") != error(missing) {
		t.Error("a file that is missing is not one that may not be read")
	}
}
