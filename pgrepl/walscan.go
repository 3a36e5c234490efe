package pgrepl

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl/divergence"
	"github.com/understudy-ha/understudy/pgrepl/internal/command"
)

// stretch is a piece of one timeline.
type stretch struct {
	timeline cluster.Timeline
	from, to cluster.LSN
}

// stretches are the pieces of WAL that lead from an LSN to the end.
func stretches(h cluster.History, from cluster.LSN, end cluster.Position) (list []stretch) {
	for _, f := range append(h, cluster.Fork{Timeline: end.Timeline, LSN: end.LSN}) {
		if f.LSN > from {
			list = append(list, stretch{f.Timeline, from, f.LSN})
			from = f.LSN
		}
	}
	return list
}

// scan reads the transactions that have committed between an LSN and the end of
// the server's WAL. It reads from back on, where it is earlier: a transaction may
// have written before and committed after.
func (s *Server) scan(ctx context.Context, back, after cluster.LSN, end cluster.Position) (*divergence.Scan, error) {
	history, err := s.History(ctx, end.Timeline)
	if err != nil {
		return nil, err
	}
	if back == 0 || back > after {
		back = after
	}
	scan := &divergence.Scan{After: after}
	for _, piece := range stretches(history, back, end) {
		if err := s.dump(ctx, piece, scan.Line); err != nil {
			return nil, err
		}
	}
	return scan, nil
}

// dump gives the lines of pg_waldump to a function.
func (s *Server) dump(ctx context.Context, piece stretch, line func(string) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := &lines{each: func(text string) {
		if err := line(text); err != nil {
			cancel(err)
		}
	}}
	_, err := s.run.Run(ctx, command.Op{
		Label: "read WAL",
		Argv: []string{s.bin("pg_waldump"), "--path=" + filepath.Join(s.DataDir, "pg_wal"), fmt.Sprintf("--timeline=%d", piece.timeline),
			"--start=" + piece.from.String(), "--end=" + piece.to.String(),
			"--rmgr=Heap", "--rmgr=Heap2", "--rmgr=Transaction", "--rmgr=Sequence", "--rmgr=LogicalMessage"},
		Out: out,
	})
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err != nil && strings.Contains(err.Error(), "could not find a valid record after") {
		return nil // nothing but the rest of a page
	}
	return err
}

// lines splits what is written to it.
type lines struct {
	each    func(string)
	partial string
}

func (l *lines) Write(p []byte) (int, error) {
	text := l.partial + string(p)
	for {
		line, rest, ok := strings.Cut(text, "\n")
		if !ok {
			l.partial = text
			return len(p), nil
		}
		l.each(line)
		text = rest
	}
}
