package pgrepl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl/internal/command"
)

type identity struct {
	systemID string
	at       cluster.Position
}

// identifyOn asks over a replication connection.
func identifyOn(ctx context.Context, c *pgx.Conn) (identity, error) {
	res, err := c.PgConn().Exec(ctx, "IDENTIFY_SYSTEM").ReadAll()
	if err != nil {
		return identity{}, fmt.Errorf("identify system: %w", err)
	}
	if len(res) != 1 || len(res[0].Rows) != 1 || len(res[0].Rows[0]) < 3 {
		return identity{}, fmt.Errorf("identify system: unexpected answer")
	}
	row := res[0].Rows[0]
	tl, err := strconv.ParseUint(string(row[1]), 10, 32)
	if err != nil {
		return identity{}, fmt.Errorf("identify system: timeline %q", row[1])
	}
	lsn, err := cluster.ParseLSN(string(row[2]))
	if err != nil {
		return identity{}, fmt.Errorf("identify system: %w", err)
	}
	return identity{string(row[0]), cluster.Position{Timeline: cluster.Timeline(tl), LSN: lsn}}, nil
}

// History returns the ancestors of a timeline that this data directory has seen,
// whether the server runs or not. Timeline 1 has none; a timeline that is not
// known here is an error that wraps fs.ErrNotExist.
func (s *Server) History(ctx context.Context, tl cluster.Timeline) (cluster.History, error) {
	if tl <= 1 {
		return nil, nil
	}
	text, err := os.ReadFile(filepath.Join(s.DataDir, "pg_wal", historyFile(tl)))
	if err != nil {
		return nil, fmt.Errorf("read history of timeline %d: %w", tl, err)
	}
	return cluster.ParseHistory(string(text))
}

func historyFile(tl cluster.Timeline) string { return fmt.Sprintf("%08X.history", uint32(tl)) }

// ControlData reads pg_control. On a running server it lags behind.
func (s *Server) ControlData(ctx context.Context) (ControlData, error) {
	return s.controlData(ctx, s.DataDir)
}

func (s *Server) controlData(ctx context.Context, dir string) (ControlData, error) {
	out, err := s.run.Run(ctx, command.Op{Label: "read pg_control", Argv: []string{s.bin("pg_controldata"), "-D", dir}})
	if err != nil {
		return ControlData{}, err
	}
	return parseControlData(out)
}

// limitNames are the settings in pg_control that a standby must not undercut, by
// the words of pg_controldata.
var limitNames = map[string]string{
	"max_connections setting":      "max_connections",
	"max_worker_processes setting": "max_worker_processes",
	"max_wal_senders setting":      "max_wal_senders",
	"max_prepared_xacts setting":   "max_prepared_transactions",
	"max_locks_per_xact setting":   "max_locks_per_transaction",
}

func parseControlData(text string) (ControlData, error) {
	d := ControlData{limits: map[string]int{}}
	var errs []error
	lsn := func(v string) cluster.LSN {
		l, err := cluster.ParseLSN(v)
		errs = append(errs, err)
		return l
	}
	number := func(v string) int {
		n, err := strconv.Atoi(v)
		errs = append(errs, err)
		return n
	}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "Database system identifier":
			d.SystemID = value
		case "Database cluster state":
			d.State = value
		case "Latest checkpoint location":
			d.Checkpoint = lsn(value)
		case "Latest checkpoint's REDO location":
			d.Redo = lsn(value)
		case "Latest checkpoint's TimeLineID":
			d.Timeline = cluster.Timeline(number(value))
		case "Minimum recovery ending location":
			d.MinRecoveryEnd.LSN = lsn(value)
		case "Min recovery ending loc's timeline":
			d.MinRecoveryEnd.Timeline = cluster.Timeline(number(value))
		case "Data page checksum version":
			d.Checksums = value != "0"
		case "wal_log_hints setting":
			d.WALLogHints = value == "on"
		}
		if name, ok := limitNames[key]; ok {
			d.limits[name] = number(value)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return ControlData{}, fmt.Errorf("read pg_control: %w", err)
	}
	if d.SystemID == "" || d.State == "" || d.Timeline == 0 {
		return ControlData{}, fmt.Errorf("read pg_control: unexpected output of pg_controldata")
	}
	return d, nil
}

// systemID reads the system identifier without a program: the first eight bytes
// of pg_control, in every version of PostgreSQL. It wraps fs.ErrNotExist when
// there is no data directory.
func systemID(dataDir string) (string, error) {
	f, err := os.Open(filepath.Join(dataDir, "global", "pg_control"))
	if err != nil {
		return "", fmt.Errorf("read system identifier: %w", err)
	}
	defer f.Close()
	var b [8]byte
	if _, err := io.ReadFull(f, b[:]); err != nil {
		return "", fmt.Errorf("read system identifier: %w", err)
	}
	return strconv.FormatUint(binary.NativeEndian.Uint64(b[:]), 10), nil
}

// configured asks the server binary for a setting, as the configuration files
// have it; the server need not run.
func (s *Server) configured(ctx context.Context, name string) (string, error) {
	out, err := s.run.Run(ctx, command.Op{
		Label: "read setting " + name,
		Argv:  []string{s.bin("postgres"), "-D", s.DataDir, "-c", "config_file=" + s.ConfigFile, "-C", name},
	})
	return strings.TrimSpace(out), err
}

func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
