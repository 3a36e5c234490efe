package pgrepl

import (
	"context"
	"errors"
)

var errSoon = errors.New("being written")

// Clone ...
func (s *Server) Clone(ctx context.Context, from Upstream, progress func(string)) error {
	return errSoon
}

// Rewind ...
func (s *Server) Rewind(ctx context.Context, from Upstream, progress func(string)) error {
	return errSoon
}

// Complete ...
func (s *Server) Complete() bool { return false }

// MarkComplete ... (start: the first active's own data directory is complete)
func (s *Server) MarkComplete(ctx context.Context) error { return errSoon }

// PrepareBoot ...
func PrepareBoot(dataDir string) error { return errSoon }

// Preflight ...
func (s *Server) Preflight(ctx context.Context) []Problem { return nil }
