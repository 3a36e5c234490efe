package pgrepl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/understudy-ha/understudy/cluster"
)

// skipped is the reason that a placeholder gives in its last line. PostgreSQL
// ignores it; it tells a placeholder from the history of a timeline that
// somebody wrote on.
const skipped = "skipped by understudy"

// SkipTimelines lets the next Promote leave out n timeline numbers: those that
// another part of the cluster may be giving to a timeline of its own at the same
// time. Two timelines of one number cannot be told apart by PostgreSQL.
//
// It is called on a standby between Detach and Promote, and waits until all WAL
// that was received is replayed. For each number it writes a history file that
// forks at that position, so that the next free number is a later one. Such a
// timeline is empty, and a true ancestor of whatever is promoted from here: the
// server may read it, crash and start again at any moment. When the promotion
// does not come, Follow takes the files back. The files stay after it, because
// standbys ask for the history of every number.
//
// The server looks for new timelines all the time, and then counts the last of
// these among the ancestors of the one that Promote makes. A node that has WAL of
// its own on a timeline of that number, and less of it, would be sent that
// ancestor, over what it has, and shut down. So n must be one more than is needed:
// no node may be on the last one.
//
// Done again it writes no more than is missing. The error wraps ErrNotStandby on
// a primary, and ErrNotRunning without a server.
func (s *Server) SkipTimelines(ctx context.Context, n int) error {
	if n <= 0 {
		return nil
	}
	if err := s.skipTimelines(ctx, n); err != nil {
		return fmt.Errorf("skip %d timelines: %w", n, err)
	}
	return nil
}

func (s *Server) skipTimelines(ctx context.Context, n int) error {
	at, err := s.replayedAll(ctx)
	if err != nil {
		return err
	}
	history, err := s.historyText(at.Timeline)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("%s%d\t%s\t%s\n", history, at.Timeline, at.LSN, skipped)
	// From the highest down: PostgreSQL looks for numbers upwards and stops at
	// the first that is free, so it sees all of them or none.
	for tl := at.Timeline + cluster.Timeline(n); tl > at.Timeline; tl-- {
		file := filepath.Join(s.DataDir, "pg_wal", historyFile(tl))
		if exists(file) {
			continue
		}
		if err := s.writeFile(file, text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// replayedAll waits until a standby that receives nothing has replayed all it
// has, and returns where that ends.
func (s *Server) replayedAll(ctx context.Context) (cluster.Position, error) {
	var at cluster.Position
	err := poll(ctx, pollEvery, func() (bool, error) {
		var standby, idle bool
		var receiver int
		var received string
		if err := s.row(ctx, receiverSQL, nil, &standby, &receiver, &idle, &received); err != nil {
			return false, err
		}
		switch {
		case !standby:
			return false, ErrNotStandby
		case receiver != 0:
			return false, errors.New("the standby still receives WAL; detach it first")
		case !idle:
			return false, nil
		}
		id, err := s.identify(ctx)
		if err != nil {
			return false, err
		}
		var replayed string
		err = s.row(ctx, "select coalesce(pg_last_wal_replay_lsn()::text, '')", nil, &replayed)
		at = cluster.Position{Timeline: id.at.Timeline, LSN: lsnOrZero(replayed)}
		return at.LSN != 0, err
	})
	return at, err
}

func (s *Server) historyText(tl cluster.Timeline) (string, error) {
	if tl <= 1 {
		return "", nil
	}
	text, err := os.ReadFile(filepath.Join(s.DataDir, "pg_wal", historyFile(tl)))
	if err != nil {
		return "", fmt.Errorf("read history of timeline %d: %w", tl, err)
	}
	return strings.TrimRight(string(text), "\n") + "\n", nil
}

// unskip takes back the placeholders of a promotion that did not come. A server
// that runs may be on its way to one of them in memory, so it is shut down, and
// its unit starts it again; the error then wraps ErrNotRunning.
func (s *Server) unskip(ctx context.Context) error {
	files, err := s.placeholders()
	if err != nil || len(files) == 0 {
		return err
	}
	if err := removeFiles(files...); err != nil {
		return err
	}
	if err := syncPath(filepath.Join(s.DataDir, "pg_wal")); err != nil {
		return err
	}
	pid := s.postmaster()
	if pid == 0 {
		return nil
	}
	s.log.Warn("restarting a standby that was about to skip timelines", "files", len(files))
	if err := syscall.Kill(pid, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop postmaster %d: %w", pid, err)
	}
	err = poll(ctx, pollEvery, func() (bool, error) { return s.postmaster() != pid, nil })
	if err != nil {
		return fmt.Errorf("stop postmaster %d: %w", pid, err)
	}
	return fmt.Errorf("%w: it was stopped, because it may be on its way to a timeline that nobody has made", ErrNotRunning)
}

// placeholders are the files of SkipTimelines that no promotion has used: those
// that no history of a real timeline lies above.
func (s *Server) placeholders() ([]string, error) {
	all, err := filepath.Glob(filepath.Join(globQuote(s.DataDir), "pg_wal", "*.history"))
	if err != nil {
		return nil, fmt.Errorf("look for timelines: %w", err)
	}
	var files []string // the names sort as the numbers do
	for _, file := range all {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("look for timelines: %w", err)
		}
		if !strings.HasSuffix(string(text), "\t"+skipped+"\n") {
			files = nil
			continue
		}
		files = append(files, file)
	}
	return files, nil
}
