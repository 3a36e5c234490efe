package helper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl"
)

// The arguments and results that are no single value.
type (
	none  struct{}
	slots struct {
		Tenure cluster.Tenure `json:"tenure"`
		Nodes  []string       `json:"nodes"`
	}
	aside struct {
		Request pgrepl.ExportRequest `json:"request"`
		Why     string               `json:"why"`
	}
	commit struct {
		At  time.Time   `json:"at"`
		LSN cluster.LSN `json:"lsn"`
	}
)

type verb func(ctx context.Context, s *Server, args json.RawMessage, progress func(string)) (any, error)

// with is a verb that takes an A.
func with[A any](do func(ctx context.Context, s *Server, a A, progress func(string)) (any, error)) verb {
	return func(ctx context.Context, s *Server, args json.RawMessage, progress func(string)) (any, error) {
		var a A
		if err := json.Unmarshal(args, &a); err != nil {
			return nil, fmt.Errorf("arguments: %w", err)
		}
		return do(ctx, s, a, progress)
	}
}

// of is a verb that takes an A and tells no progress.
func of[A any](do func(pg *pgrepl.Server, ctx context.Context, a A) error) verb {
	return with(func(ctx context.Context, s *Server, a A, _ func(string)) (any, error) {
		return none{}, do(s.Postgres, ctx, a)
	})
}

// plain is a verb that takes nothing.
func plain(do func(pg *pgrepl.Server, ctx context.Context) error) verb {
	return with(func(ctx context.Context, s *Server, _ none, _ func(string)) (any, error) {
		return none{}, do(s.Postgres, ctx)
	})
}

// asking is a verb that takes nothing and returns an R.
func asking[R any](do func(pg *pgrepl.Server, ctx context.Context) (R, error)) verb {
	return with(func(ctx context.Context, s *Server, _ none, _ func(string)) (any, error) {
		return do(s.Postgres, ctx)
	})
}

// verbs are all that a caller can ask for.
var verbs = map[string]verb{
	"observe": with(func(ctx context.Context, s *Server, _ none, _ func(string)) (any, error) {
		return s.Postgres.Observe(ctx), nil
	}),
	"promote":    asking((*pgrepl.Server).Promote),
	"checkpoint": plain((*pgrepl.Server).Checkpoint),
	"set-quorum": of((*pgrepl.Server).SetQuorum),
	"gate":       of((*pgrepl.Server).Gate),
	"detach":     asking((*pgrepl.Server).Detach),
	"follow":     of((*pgrepl.Server).Follow),
	"slots": of(func(pg *pgrepl.Server, ctx context.Context, a slots) error {
		return pg.EnsureSlots(ctx, a.Tenure, a.Nodes)
	}),
	"history": with(func(ctx context.Context, s *Server, tl cluster.Timeline, _ func(string)) (any, error) {
		return s.Postgres.History(ctx, tl)
	}),
	"complete": with(func(_ context.Context, s *Server, _ none, _ func(string)) (any, error) {
		return s.Postgres.Complete(), nil
	}),
	"control-data": asking((*pgrepl.Server).ControlData),
	"rewind": with(func(ctx context.Context, s *Server, from pgrepl.Upstream, progress func(string)) (any, error) {
		return none{}, s.Postgres.Rewind(ctx, from, progress)
	}),
	"clone": with(func(ctx context.Context, s *Server, from pgrepl.Upstream, progress func(string)) (any, error) {
		return none{}, s.Postgres.Clone(ctx, from, progress)
	}),
	"last-commit": with(func(ctx context.Context, s *Server, after cluster.LSN, _ func(string)) (any, error) {
		at, lsn, err := s.Postgres.LastCommit(ctx, after)
		return commit{at, lsn}, err
	}),
	"skip-timelines":     of((*pgrepl.Server).SkipTimelines),
	"keep-divergence":    plain((*pgrepl.Server).KeepDivergence),
	"advance-divergence": of((*pgrepl.Server).AdvanceDivergence),
	"export": with(func(ctx context.Context, s *Server, r pgrepl.ExportRequest, _ func(string)) (any, error) {
		r.Dir = s.Divergence
		return s.Postgres.Export(ctx, r)
	}),
	"set-aside": with(func(ctx context.Context, s *Server, a aside, _ func(string)) (any, error) {
		a.Request.Dir = s.Divergence
		return s.Postgres.SetAside(ctx, a.Request, errors.New(a.Why))
	}),
	"install-certificates": plain((*pgrepl.Server).InstallCertificates),
	"open-drill":           plain((*pgrepl.Server).OpenDrill),
	"close-drill":          plain((*pgrepl.Server).CloseDrill),
	"probe": with(func(_ context.Context, s *Server, _ none, _ func(string)) (any, error) {
		return s.Postgres.Probe()
	}),
}
