package pgrepl

import (
	"context"
	"errors"

	"github.com/understudy-ha/understudy/cluster"
)

var errSoon = errors.New("being written")

// Observe never fails: what could not be seen is unknown.
func (s *Server) Observe(ctx context.Context) Observation { return Observation{} }

// Detach ...
func (s *Server) Detach(ctx context.Context) (cluster.Position, error) {
	return cluster.Position{}, errSoon
}

// Follow ...
func (s *Server) Follow(ctx context.Context, up Upstream) error { return errSoon }

// Promote ... position: the new timeline and the LSN at its start.
func (s *Server) Promote(ctx context.Context) (cluster.Position, error) {
	return cluster.Position{}, errSoon
}

// Checkpoint ...
func (s *Server) Checkpoint(ctx context.Context) error { return errSoon }

// EnsureSlots ...
func (s *Server) EnsureSlots(ctx context.Context, nodes []string) error { return errSoon }

// DropSlots ...
func (s *Server) DropSlots(ctx context.Context) error { return errSoon }

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

// InUse ...
func (s *Server) InUse(ctx context.Context) (what string, err error) { return "", errSoon }

// Preflight ...
func (s *Server) Preflight(ctx context.Context) []Problem { return nil }
