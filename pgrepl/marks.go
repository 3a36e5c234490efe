package pgrepl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// Beside a data directory D lie
//
//	D.rewinding   a rewind was begun: D must not start
//	D.complete    D is a whole copy of the database: it may be elected
//	D.clone       a clone that is being made
//	D.old-TIME    what D was before
//	D.divergence-ID  what D was before, with what was written in vain; see SetAside
//	D.lock        held by whoever clones or rewinds
//
// In the unit of the server the guard of PrepareBoot is, run as PostgreSQL's user,
//
//	ExecStartPre=/usr/bin/test ! -e D.rewinding
//	ExecStartPre=/usr/bin/touch D/standby.signal
func rewindMark(dataDir string) string   { return dataDir + ".rewinding" }
func completeMark(dataDir string) string { return dataDir + ".complete" }
func cloneDir(dataDir string) string     { return dataDir + ".clone" }
func oldDir(dataDir string, at time.Time) string {
	return dataDir + ".old-" + at.UTC().Format("20060102T150405.000")
}

const standbySignal = "standby.signal"

// PrepareBoot makes a data directory fit to start: always as a standby, because
// an old primary must not be writable before it has heard of the new one; and
// never when a rewind was not finished, an error that wraps ErrRewinding.
func PrepareBoot(dataDir string) error {
	if exists(rewindMark(dataDir)) {
		return fmt.Errorf("start %s: %w", dataDir, ErrRewinding)
	}
	f, err := os.OpenFile(filepath.Join(dataDir, standbySignal), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start %s as a standby: %w", dataDir, err)
	}
	defer f.Close()
	// It is the server's, which reads it when it is cloned from.
	if err := giveLike(dataDir, f); err != nil {
		return fmt.Errorf("start %s as a standby: %w", dataDir, err)
	}
	return errors.Join(f.Sync(), syncPath(dataDir))
}

// giveLike gives a file that root has made to the owner of a folder.
func giveLike(dir string, f *os.File) error {
	info, err := os.Stat(dir)
	if err != nil || os.Geteuid() != 0 {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t)
	return f.Chown(int(owner.Uid), int(owner.Gid))
}

// completeness is the content of D.complete.
type completeness struct {
	SystemID string    `json:"system_id"`
	At       time.Time `json:"at"`
}

// Complete says whether the data directory is a whole copy of the database that
// is named in its mark: cloned or rewound to the end, or marked by MarkComplete.
func (s *Server) Complete() bool {
	var c completeness
	text, err := os.ReadFile(completeMark(s.DataDir))
	if err != nil || json.Unmarshal(text, &c) != nil || exists(rewindMark(s.DataDir)) {
		return false
	}
	id, err := systemID(s.DataDir)
	return err == nil && id == c.SystemID
}

// MarkComplete says so of the data directory that a new cluster begins with.
func (s *Server) MarkComplete(ctx context.Context) error {
	if exists(rewindMark(s.DataDir)) {
		return fmt.Errorf("mark data directory as complete: %w", ErrRewinding)
	}
	id, err := systemID(s.DataDir)
	if err != nil {
		return fmt.Errorf("mark data directory as complete: %w", err)
	}
	text, err := json.Marshal(completeness{id, time.Now().UTC()})
	if err != nil {
		return fmt.Errorf("mark data directory as complete: %w", err)
	}
	return s.writeFile(completeMark(s.DataDir), string(text)+"\n", 0o644)
}

// lock keeps other clones and rewinds off the data directory, also those of
// other processes, until unlock. The kernel frees it when the process dies.
func (s *Server) lock() (unlock func(), err error) {
	f, err := os.OpenFile(s.DataDir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := s.run.Own(f.Name()); err != nil { // whoever clones next may not be root
		f.Close()
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrBusy
		}
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	return func() {
		// To close it is not enough: a command that is being started at this
		// moment still has the file, until it is executed.
		_ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
		f.Close()
	}, nil
}

// keptOld is how many earlier data directories are kept.
const keptOld = 2

// prune deletes all but the newest earlier data directories. It comes after the
// new one is complete. Their names sort by time.
func (s *Server) prune() error {
	old, err := filepath.Glob(globQuote(s.DataDir) + ".old-*")
	if err != nil {
		return fmt.Errorf("find earlier data directories: %w", err)
	}
	slices.Sort(old)
	for _, dir := range old[:max(0, len(old)-keptOld)] {
		s.log.Info("deleting an earlier data directory", "dir", dir)
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("delete earlier data directory: %w", err)
		}
	}
	return nil
}

// globQuote keeps what is in a path from being read as a pattern.
func globQuote(path string) string {
	var out []rune
	for _, r := range path {
		if slices.Contains([]rune(`*?[\`), r) {
			out = append(out, '\\')
		}
		out = append(out, r)
	}
	return string(out)
}
