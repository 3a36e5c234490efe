package pgrepl

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// originals are the files that the server used before understudy, as found
// when Prepare came first.
type originals struct {
	HBA   string `json:"hba_file"`
	Ident string `json:"ident_file"`

	Sockets string `json:"unix_socket_directories"`
}

func (s *Server) readOriginals() (originals, error) {
	var o originals
	text, err := os.ReadFile(s.own("original.json"))
	if err != nil {
		return o, fmt.Errorf("read what was configured before: %w", err)
	}
	if err := json.Unmarshal(text, &o); err != nil {
		return o, fmt.Errorf("read what was configured before: %w", err)
	}
	return o, nil
}

// Prepare writes the configuration: settings, rules of admission with the gate
// closed, and the certificates from SSLDir. It may be repeated, as after a change
// of Parameters or certificates, and then keeps the gate, upstream and quorum. A
// server that runs reads what it can without a restart; the first time it must be
// restarted, which is the caller's. From then on it boots as a standby of
// nobody (see PrepareBoot) that waits for Promote or Follow.
func (s *Server) Prepare(ctx context.Context) error {
	if err := s.prepare(ctx); err != nil {
		return fmt.Errorf("prepare postgresql: %w", err)
	}
	return nil
}

func (s *Server) prepare(ctx context.Context) error {
	if err := s.checkOverridden(); err != nil {
		return err
	}
	if err := s.makeDir(s.own(""), 0o750); err != nil {
		return err
	}
	if err := s.makeDir(s.SocketDir, 0o755); err != nil {
		return err
	}
	if err := s.recordOriginals(ctx); err != nil {
		return err
	}
	if err := s.copyCertificates(); err != nil {
		return err
	}
	open, _ := s.gateFile() // none yet: closed
	sync, err := s.writeAdmission(open)
	if err == nil {
		err = sync()
	}
	if err != nil {
		return err
	}
	if !exists(s.dynamicFile()) {
		if err := s.writeFile(s.dynamicFile(), parseDynamic("").text(), 0o640); err != nil {
			return err
		}
	}
	if err := s.writeStatic(ctx); err != nil {
		return err
	}
	if s.postmaster() == 0 {
		return nil
	}
	// Not waited for: a server that still has the old configuration admits
	// no session of ours.
	return s.reload(ctx)
}

// recordOriginals remembers, once, the files that ours stand in for.
func (s *Server) recordOriginals(ctx context.Context) error {
	if exists(s.own("original.json")) {
		return nil
	}
	var o originals
	var err error
	if o.HBA, err = s.configured(ctx, "hba_file"); err != nil {
		return err
	}
	if o.Ident, err = s.configured(ctx, "ident_file"); err != nil {
		return err
	}
	if o.Sockets, err = s.configured(ctx, "unix_socket_directories"); err != nil {
		return err
	}
	if o.HBA == s.own("pg_hba.conf") {
		return fmt.Errorf("%s is gone, and with it the names of the original files; remove %s and try again",
			s.own("original.json"), s.staticFile())
	}
	text, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return fmt.Errorf("record original files: %w", err)
	}
	return s.writeFile(s.own("original.json"), string(text)+"\n", 0o640)
}

// writeStatic writes conf.d/understudy.conf and sees that it counts. Settings
// that the data directory needs at least, because the primary it came from had
// them, are raised; those that the operator gave by Parameters are left alone.
func (s *Server) writeStatic(ctx context.Context) error {
	before, err := s.readOriginals()
	if err != nil {
		return err
	}
	if err := s.writeFile(s.staticFile(), s.staticConf(before.Sockets, nil), 0o640); err != nil {
		return err
	}
	raised, err := s.raised(ctx)
	if err != nil {
		return err
	}
	if len(raised) > 0 {
		if err := s.writeFile(s.staticFile(), s.staticConf(before.Sockets, raised), 0o640); err != nil {
			return err
		}
	}
	for _, want := range []setting{{"hba_file", s.own("pg_hba.conf")}, {"restart_after_crash", "off"}, {"data_directory", s.DataDir}} {
		got, err := s.configured(ctx, want.name)
		if err != nil {
			return err
		}
		if got != want.value {
			return fmt.Errorf("%w: %s is %q and not %q; %s must have the line include_dir = 'conf.d', and no file of it that sorts after understudy.conf may set %s",
				ErrOverridden, want.name, got, want.value, s.ConfigFile, want.name)
		}
	}
	return nil
}

// copyCertificates takes over the node's certificates: PostgreSQL reads a key only
// where it belongs to its own user.
func (s *Server) copyCertificates() error {
	for _, name := range []string{"ca.crt", "node.key", "node.crt"} {
		text, err := os.ReadFile(filepath.Join(s.SSLDir, name))
		if err != nil {
			return fmt.Errorf("read certificates: %w", err)
		}
		if err := s.refreshFile(s.own(name), string(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// InstallCertificates has the server use the certificates that are in SSLDir now, for
// new connections. Without a server it uses them from its next start on.
func (s *Server) InstallCertificates(ctx context.Context) error {
	err := s.copyCertificates()
	if err == nil && s.postmaster() != 0 {
		err = s.reload(ctx)
	}
	if err != nil {
		return fmt.Errorf("install certificates: %w", err)
	}
	return nil
}

// raised compares what is configured without it with pg_control.
func (s *Server) raised(ctx context.Context) ([]setting, error) {
	control, err := s.ControlData(ctx)
	if err != nil {
		return nil, err
	}
	var raised []setting
	for name, least := range control.limits {
		if _, given := s.Parameters[name]; given {
			continue
		}
		configured, err := s.configured(ctx, name)
		if err != nil {
			return nil, err
		}
		if n, err := strconv.Atoi(configured); err == nil && n < least {
			raised = append(raised, setting{name, strconv.Itoa(least)})
		}
	}
	slices.SortFunc(raised, func(a, b setting) int { return strings.Compare(a.name, b.name) })
	return raised, nil
}
