package pgrepl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/pgrepl/internal/command"
)

// archiveWithin bounds how long an archive that takes nothing may delay a rewind.
const archiveWithin = time.Minute

// archiveRest gives the finished segments that the archiver of the stopped server had
// not come to yet to archive_command, in their order, as it would have. pg_rewind
// deletes them, and a new primary archives nothing of what it had received as a
// standby: the archive would have a hole. What the archive does not take is copied
// into DATADIR.unarchived, for an operator to archive.
func (s *Server) archiveRest(ctx context.Context, progress func(string)) error {
	ready, err := filepath.Glob(filepath.Join(s.DataDir, "pg_wal/archive_status/*.ready"))
	if err != nil || len(ready) == 0 {
		return err
	}
	mode, err := s.configured(ctx, "archive_mode")
	if err != nil || mode == "off" {
		return err
	}
	take, err := s.configured(ctx, "archive_command")
	if err != nil {
		return err
	}
	slices.Sort(ready)
	progress(fmt.Sprintf("archiving %d segments that the rewind deletes", len(ready)))
	within, cancel := context.WithTimeout(ctx, archiveWithin)
	defer cancel()
	for i, status := range ready {
		if err := s.archive(within, take, strings.TrimSuffix(filepath.Base(status), ".ready")); err != nil {
			s.log.Warn("segments are not archived, and kept", "in", s.unarchived(), "segments", len(ready)-i, "error", err)
			return s.keepUnarchived(ctx, ready[i:])
		}
		if err := os.Rename(status, strings.TrimSuffix(status, ".ready")+".done"); err != nil {
			return fmt.Errorf("archive: %w", err)
		}
	}
	return nil
}

func (s *Server) archive(ctx context.Context, take, name string) error {
	if take == "" {
		return errors.New("archive_command is empty")
	}
	line := strings.NewReplacer("%%", "%", "%p", "pg_wal/"+name, "%f", name).Replace(take)
	_, err := s.run.Run(ctx, command.Op{Label: "archive " + name, Argv: []string{"/bin/sh", "-c", `cd -- "$1" && eval "$2"`, "sh", s.DataDir, line}})
	return err
}

func (s *Server) unarchived() string { return s.DataDir + ".unarchived" }

// keepUnarchived copies the segments that still wait into a folder beside the data
// directory. A link would not do: PostgreSQL writes other WAL into old segments.
func (s *Server) keepUnarchived(ctx context.Context, ready []string) error {
	if err := s.makeDir(s.unarchived(), 0o700); err != nil {
		return err
	}
	argv := []string{"/bin/cp", "--preserve=mode,timestamps", "--reflink=auto", "--target-directory=" + s.unarchived()}
	for _, status := range ready {
		argv = append(argv, filepath.Join(s.DataDir, "pg_wal", strings.TrimSuffix(filepath.Base(status), ".ready")))
	}
	_, err := s.run.Run(ctx, command.Op{Label: "keep what is not archived", Argv: argv})
	return err
}
