package pgrepl

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/pgrepl/internal/command"
)

// Rewind brings a data directory that has diverged from source, a primary, back
// to their common past, and leaves it configured to follow source. The server
// must be stopped; a crash of it is recovered from first. Whether a rewind is
// needed at all says cluster.History.Contains.
//
// From its begin to its end DATADIR.rewinding keeps the server from starting.
// After an error the data directory is lost as it is: Clone.
//
// It waits until source has had a checkpoint since its promotion: before that
// pg_rewind sees the old timeline in its pg_control and finds nothing to do.
func (s *Server) Rewind(ctx context.Context, from Upstream, progress func(string)) error {
	unlock, err := s.lock()
	if err != nil {
		return fmt.Errorf("rewind to %s: %w", from, err)
	}
	defer unlock()
	if progress == nil {
		progress = func(string) {}
	}
	if err := s.rewind(ctx, from, progress); err != nil {
		return fmt.Errorf("rewind to %s: %w", from, err)
	}
	return nil
}

func (s *Server) rewind(ctx context.Context, from Upstream, progress func(string)) error {
	if s.postmaster() != 0 {
		return ErrRunning
	}
	if exists(rewindMark(s.DataDir)) {
		return ErrRewinding
	}
	src, err := s.askSource(ctx, from)
	if err != nil {
		return err
	}
	id, err := systemID(s.DataDir)
	if err != nil {
		return err
	}
	if id != src.systemID {
		return fmt.Errorf("%w: this data directory has system identifier %s and the source %s", ErrForeign, id, src.systemID)
	}
	if err := s.rewindable(ctx); err != nil {
		return err
	}
	if err := s.awaitCheckpoint(ctx, from); err != nil {
		return err
	}
	if err := s.archiveRest(ctx, progress); err != nil {
		return err
	}
	restore, err := s.configured(ctx, "restore_command")
	if err != nil {
		return err
	}
	if err := s.writeFile(rewindMark(s.DataDir), time.Now().UTC().Format(time.RFC3339)+"\n", 0o644); err != nil {
		return err
	}
	if err := removeFiles(completeMark(s.DataDir)); err != nil {
		return err
	}
	// pg_rewind recovers from a crash in single-user mode, which refuses to
	// start a standby.
	signal := filepath.Join(s.DataDir, standbySignal)
	if err := removeFiles(signal, filepath.Join(s.DataDir, "recovery.signal")); err != nil {
		return err
	}
	argv := []string{s.bin("pg_rewind"), "--target-pgdata=" + s.DataDir, "--config-file=" + s.ConfigFile,
		"--source-server=" + s.conninfo(from, setting{"dbname", "postgres"}, setting{"application_name", copyApp}), "--progress"}
	if restore != "" {
		argv = append(argv, "--restore-target-wal")
	}
	progress("rewinding to " + from.String())
	idle := false
	line := func(text string) {
		idle = idle || strings.Contains(text, "no rewind required")
		progress(text)
	}
	_, err = s.run.Run(ctx, command.Op{Label: "rewind the data directory", Argv: argv, Line: line,
		Env: []string{"PGOPTIONS=-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0"}})
	if err != nil {
		return err
	}
	if idle {
		// Whoever asks for a rewind has seen two lines of WAL. If pg_rewind
		// sees one, both bear the same timeline number.
		return fmt.Errorf("pg_rewind finds nothing to rewind in a directory that has diverged")
	}
	if err := s.writeFile(signal, "", 0o600); err != nil {
		return err
	}
	if err := s.checkOverridden(); err != nil {
		return err // postgresql.auto.conf came from the source
	}
	if err := s.settleAs(ctx, from); err != nil {
		return err
	}
	progress("the rewind is complete")
	return nil
}

// rewindable refuses a standby that was not shut down cleanly. pg_rewind would
// recover it in single-user mode, which ends recovery: it would write WAL of its
// own on the timeline of the source, and nothing could tell the two apart.
func (s *Server) rewindable(ctx context.Context) error {
	control, err := s.ControlData(ctx)
	if err != nil {
		return err
	}
	if control.State == "in archive recovery" || exists(filepath.Join(s.DataDir, "backup_label")) {
		return fmt.Errorf("%w: it is %q", ErrRecovering, control.State)
	}
	return nil
}

// source is what an upstream says of itself.
type source struct {
	systemID string
	size     int64 // bytes of all databases and of its WAL
}

// askSource connects to an upstream as this node's standby would, and checks
// that it is the right one.
func (s *Server) askSource(ctx context.Context, from Upstream) (src source, err error) {
	c, err := s.connectUpstream(ctx, from)
	if err != nil {
		return src, err
	}
	defer discard(c)
	var tablespaces int
	err = c.QueryRow(ctx, `select (select system_identifier::text from pg_control_system()),
		(select sum(pg_database_size(oid)) from pg_database)::bigint + (select coalesce(sum(size), 0) from pg_ls_waldir())::bigint,
		(select count(*) from pg_tablespace where oid >= 16384)`).Scan(&src.systemID, &src.size, &tablespaces)
	if err != nil {
		return src, fmt.Errorf("ask the source: %w", err)
	}
	if from.SystemID != "" && from.SystemID != src.systemID {
		return src, fmt.Errorf("%w: the source has system identifier %s and %s is expected", ErrForeign, src.systemID, from.SystemID)
	}
	if tablespaces > 0 {
		return src, fmt.Errorf("the source has %d tablespaces outside of its data directory, which cannot be copied beside; move their tables into pg_default", tablespaces)
	}
	return src, nil
}

// awaitCheckpoint sees to it that the source's pg_control shows the timeline
// that it writes on.
func (s *Server) awaitCheckpoint(ctx context.Context, from Upstream) error {
	c, err := s.connectUpstream(ctx, from)
	if err != nil {
		return err
	}
	defer discard(c)
	var standby, current bool
	const query = `select pg_is_in_recovery(), case when pg_is_in_recovery() then true else
		timeline_id = ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end from pg_control_checkpoint()`
	if err := c.QueryRow(ctx, query).Scan(&standby, &current); err != nil {
		return fmt.Errorf("look at the source's checkpoint: %w", err)
	}
	switch {
	case standby:
		return fmt.Errorf("the source is a standby")
	case current:
		return nil
	}
	if _, err := c.Exec(ctx, "checkpoint"); err != nil {
		return fmt.Errorf("take a checkpoint on the source: %w", err)
	}
	return nil
}

// connectUpstream opens a session on another node as ReplicaRole, with the
// certificate of this one.
func (s *Server) connectUpstream(ctx context.Context, from Upstream) (*pgx.Conn, error) {
	ca, err := os.ReadFile(s.own("ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", from, err)
	}
	cert, err := tls.LoadX509KeyPair(s.own("node.crt"), s.own("node.key"))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", from, err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	conf, err := pgx.ParseConfig("sslmode=disable")
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", from, err)
	}
	conf.Host, conf.Port, conf.User, conf.Database, conf.Password = from.Address, uint16(from.Port), ReplicaRole, "postgres", ""
	conf.TLSConfig = &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}, ServerName: from.Address, MinVersion: tls.VersionTLS12}
	conf.Fallbacks, conf.ConnectTimeout = nil, connectTimeout
	conf.RuntimeParams = map[string]string{"application_name": ownApp, "statement_timeout": "0"}
	conf.DialFunc = (&net.Dialer{KeepAlive: 2 * time.Second}).DialContext
	c, err := pgx.ConnectConfig(ctx, conf)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", from, classify(err))
	}
	return c, nil
}
