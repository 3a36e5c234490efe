package filesync

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/syncthing/syncthing/lib/protocol"
)

// Options is what an Engine is made of. All of it is fixed for its life.
type Options struct {
	Name        string          // this node's; the common name of Certificate
	Listen      string          // IP:port
	Certificate tls.Certificate // only the leaf is sent: Syncthing refuses chains
	CA          *x509.CertPool  // peers must be signed by it and be in date
	StateDir    string          // index, kept versions, and which folders were made
	Folders     []Folder

	// Ownership carries the owner and group of files over, by name where the
	// name is known, else by number. The process must be able to give files
	// away: root, or CAP_CHOWN with CAP_FOWNER and CAP_DAC_OVERRIDE. Without
	// it, files on a receiving node belong to the process. Permissions are
	// always carried over, extended attributes never.
	Ownership bool

	// RescanInterval is how often all folders are read in full, beside the
	// notices of the kernel. Zero means five minutes.
	RescanInterval time.Duration

	// WatchDelay is how long notices of the kernel are collected before the
	// paths are read. Zero means 50 milliseconds.
	WatchDelay time.Duration

	// KeepReplaced bounds the versions that the active's own newer ones
	// replaced: per path the newest KeepCount are kept, and none longer than
	// KeepFor. Zero means 10 and 7 days. Files that had changed on this node
	// itself are never removed.
	KeepCount int
	KeepFor   time.Duration

	Logger *slog.Logger
}

// Folder is one directory that all members hold.
type Folder struct {
	ID     string   // the same on all members; see FolderID
	Path   string   // absolute
	Ignore []string // Syncthing's ignore patterns, first match wins
}

// Peer is another member.
type Peer struct {
	Name     string // the common name, or a DNS name, of its certificate
	Address  string // tcp://IP:port
	DeviceID string // of its certificate
}

var folderID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*$`)

// DeviceID is Syncthing's name of a certificate, given in PEM. It changes with
// every new certificate.
func DeviceID(certPEM []byte) (string, error) {
	block, _ := pem.Decode(certPEM)
	if block == nil || block.Type != "CERTIFICATE" {
		return "", errors.New("name device: not a certificate in PEM")
	}
	if _, err := x509.ParseCertificate(block.Bytes); err != nil {
		return "", fmt.Errorf("name device: %w", err)
	}
	return protocol.NewDeviceID(block.Bytes).String(), nil
}

// complete fills in what was left out and refuses what cannot work.
func (o Options) complete() (Options, error) {
	host, _, err := net.SplitHostPort(o.Listen)
	if err != nil || net.ParseIP(host) == nil {
		return o, fmt.Errorf("listen on %q: not an IP address and a port", o.Listen)
	}
	if len(o.Certificate.Certificate) == 0 || o.CA == nil {
		return o, errors.New("no certificate or no CA given")
	}
	if !filepath.IsAbs(o.StateDir) {
		return o, fmt.Errorf("state directory %q is not absolute", o.StateDir)
	}
	seen := map[string]bool{}
	for _, f := range o.Folders {
		switch {
		case !folderID.MatchString(f.ID):
			return o, fmt.Errorf("folder id %q: letters, digits, dots, hyphens and underscores only", f.ID)
		case seen[f.ID]:
			return o, fmt.Errorf("folder id %q is given twice", f.ID)
		case !filepath.IsAbs(f.Path):
			return o, fmt.Errorf("folder %q is not an absolute path", f.Path)
		case within(o.StateDir, f.Path):
			return o, fmt.Errorf("folder %s holds the state directory %s", f.Path, o.StateDir)
		}
		seen[f.ID] = true
	}
	o.Certificate.Certificate = o.Certificate.Certificate[:1]
	o.RescanInterval = orElse(o.RescanInterval, 5*time.Minute)
	o.WatchDelay = orElse(o.WatchDelay, 50*time.Millisecond)
	o.KeepCount = orElse(o.KeepCount, 10)
	o.KeepFor = orElse(o.KeepFor, 7*24*time.Hour)
	o.Logger = orElse(o.Logger, slog.New(slog.DiscardHandler))
	return o, nil
}

func orElse[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// within says whether path is dir or lies below it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}
