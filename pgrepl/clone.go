package pgrepl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/understudy-ha/understudy/pgrepl/internal/command"
)

// Clone replaces the data directory by a copy of from's, which is a primary or a
// standby, and leaves it configured to follow from. The server must be stopped.
//
// The copy is made beside, checked, and then swapped in at one stroke; what was
// there before is kept as DATADIR.old-TIME, the two newest of these, or for good
// where SetAside has recorded it. So a clone
// that fails or is cancelled changes nothing; what it left is removed by the
// next. progress gets a line now and then; it may be nil.
//
// Errors: ErrRunning, ErrBusy, ErrNoSpace with what is needed, ErrForeign when
// from is not the cluster that its SystemID names.
func (s *Server) Clone(ctx context.Context, from Upstream, progress func(string)) error {
	unlock, err := s.lock()
	if err != nil {
		return fmt.Errorf("clone %s: %w", from, err)
	}
	defer unlock()
	if progress == nil {
		progress = func(string) {}
	}
	if err := s.clone(ctx, from, progress); err != nil {
		return fmt.Errorf("clone %s: %w", from, err)
	}
	return nil
}

func (s *Server) clone(ctx context.Context, from Upstream, progress func(string)) error {
	if s.postmaster() != 0 {
		return ErrRunning
	}
	src, err := s.askSource(ctx, from)
	if err != nil {
		return err
	}
	temp := cloneDir(s.DataDir)
	if err := os.RemoveAll(temp); err != nil {
		return fmt.Errorf("remove what an earlier clone left: %w", err)
	}
	if err := s.enoughSpace(src.size); err != nil {
		return err
	}
	if err := s.makeDir(temp, 0o700); err != nil {
		return err
	}
	if err := s.copyFrom(ctx, from, temp, src, progress); err != nil {
		return errors.Join(err, os.RemoveAll(temp))
	}
	if err := s.swapIn(temp); err != nil {
		return err
	}
	if err := s.settleAs(ctx, from); err != nil {
		return err
	}
	progress("the clone is complete")
	return s.prune()
}

// copyApp is the application_name of a base backup. Through its slot it confirms
// what it has flushed, and under the node's name that would count for commits.
const copyApp = "understudy clone"

// copyFrom takes the base backup into temp and makes it a standby, durably.
func (s *Server) copyFrom(ctx context.Context, from Upstream, temp string, src source, progress func(string)) error {
	progress(fmt.Sprintf("copying %s from %s", bytes(src.size), from))
	argv := []string{s.bin("pg_basebackup"), "--pgdata=" + temp, "--dbname=" + s.conninfo(from, setting{"application_name", copyApp}),
		"--wal-method=stream", "--slot=" + SlotName(from.Tenure, s.NodeName), "--checkpoint=fast", "--progress", "--no-password"}
	_, err := s.run.Run(ctx, command.Op{
		Label: "copy the database", Argv: argv,
		Env:  []string{"PGOPTIONS=-c statement_timeout=0 -c wal_sender_timeout=60s"},
		Line: progress,
	})
	if err != nil {
		return s.copyError(err, src.size)
	}
	control, err := s.controlData(ctx, temp)
	if err != nil {
		return err
	}
	if control.SystemID != src.systemID {
		return fmt.Errorf("%w: the copy has system identifier %s and its source %s", ErrForeign, control.SystemID, src.systemID)
	}
	signal := filepath.Join(temp, standbySignal)
	if err := s.writeFile(signal, "", 0o600); err != nil {
		return err
	}
	return ctx.Err()
}

// copyError tells a full disk from other failures of a base backup.
func (s *Server) copyError(err error, size int64) error {
	var failed *command.Error
	if errors.As(err, &failed) && strings.Contains(failed.Output, "No space left on device") {
		return fmt.Errorf("%w: %s are needed at %s; the present data directory is kept until the clone is complete: %w",
			ErrNoSpace, bytes(size+headroom), filepath.Dir(s.DataDir), err)
	}
	return err
}

// swapIn puts a finished clone in the place of the data directory. The clone
// gets the name for earlier directories first and is then exchanged with the
// current one, so that after a crash in between nothing that was whole has the
// name of a temporary, which the next clone removes.
func (s *Server) swapIn(temp string) error {
	parent := filepath.Dir(s.DataDir)
	if err := removeFiles(completeMark(s.DataDir)); err != nil {
		return err
	}
	if !exists(s.DataDir) {
		if err := os.Rename(temp, s.DataDir); err != nil {
			return fmt.Errorf("put the clone in place: %w", err)
		}
		return syncPath(parent)
	}
	old, err := replaced(s.DataDir, time.Now())
	if err != nil {
		return err
	}
	if err := os.Rename(temp, old); err != nil {
		return fmt.Errorf("put the clone in place: %w", err)
	}
	if err := syncPath(parent); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, old, unix.AT_FDCWD, s.DataDir, unix.RENAME_EXCHANGE)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSYS) {
		err = renameBoth(old, s.DataDir) // a file system that cannot exchange
	}
	if err != nil {
		return fmt.Errorf("put the clone in place: %w", err)
	}
	if err := ReleaseMemory(old); err != nil {
		s.log.Warn("memory of the earlier server is left", "error", err)
	}
	return syncPath(parent)
}

// renameBoth exchanges two directories in three steps.
func renameBoth(a, b string) error {
	if err := os.Rename(b, a+".was"); err != nil {
		return err
	}
	if err := os.Rename(a, b); err != nil {
		return err
	}
	return os.Rename(a+".was", a)
}

// settleAs ends a clone or a rewind: the data directory follows from, has the
// settings that it needs at least, and may start and be elected.
func (s *Server) settleAs(ctx context.Context, from Upstream) error {
	if _, err := s.change(ctx, func(d *dynamic) { s.point(d, from) }); err != nil && !errors.Is(err, ErrNotRunning) {
		return err
	}
	if err := s.writeStatic(ctx); err != nil {
		return err
	}
	// The source's data directory may have been one to be kept.
	if err := removeFiles(rewindMark(s.DataDir), asideMark(s.DataDir)); err != nil {
		return err
	}
	if err := syncPath(filepath.Dir(s.DataDir)); err != nil {
		return err
	}
	return s.MarkComplete(ctx)
}

// headroom is how much more than the database a clone is given: WAL that is
// streamed while it runs, and what the file system needs.
const headroom = 256 << 20

func (s *Server) enoughSpace(size int64) error {
	var fs unix.Statfs_t
	parent := filepath.Dir(s.DataDir)
	if err := unix.Statfs(parent, &fs); err != nil {
		return fmt.Errorf("measure free space at %s: %w", parent, err)
	}
	free := int64(fs.Bavail) * fs.Bsize
	if need := size + headroom; free < need {
		return fmt.Errorf("%w: %s are needed at %s and %s are free; the present data directory is kept until the clone is complete",
			ErrNoSpace, bytes(need), parent, bytes(free))
	}
	return nil
}

func bytes(n int64) string {
	const mega = 1 << 20
	return fmt.Sprintf("%d MB", (n+mega-1)/mega)
}
