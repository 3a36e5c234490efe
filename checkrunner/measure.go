package checkrunner

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"syscall"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
)

// heartbeatEvery is how often check-runner says that it lives, before
// check_ttl_multiplier.
const heartbeatEvery = 15 * time.Second

// measurements returns what each check of this kind of node looks at.
func (r *runner) measurements() map[cluster.Check]measurement {
	m := map[cluster.Check]measurement{
		cluster.CheckServices:  r.services(),
		cluster.CheckFiles:     r.files,
		cluster.CheckHeartbeat: heartbeat(time.Now()),
	}
	if r.Kind == cluster.Manager {
		m[cluster.CheckPort] = r.port
		m[cluster.CheckAnswer] = r.answer
		m[cluster.CheckRole] = r.role
		m[cluster.CheckStorage] = r.storage()
	}
	return m
}

func (r *runner) port(ctx context.Context) finding {
	if err := r.Database.Ping(ctx); err != nil {
		return finding{bad, "does not accept connections: " + because(ctx, err)}
	}
	return finding{good, "accepts connections"}
}

func (r *runner) answer(ctx context.Context) finding {
	if err := r.Database.Select1(ctx); err != nil {
		return finding{bad, "does not answer select 1: " + because(ctx, err)}
	}
	return finding{good, "answers select 1"}
}

func (r *runner) role(ctx context.Context) finding {
	role, err := r.Database.Role(ctx)
	if err != nil {
		return finding{bad, "does not tell its role: " + because(ctx, err)}
	}
	return judgeRole(time.Now(), r.ttl(cluster.CheckRole), r.Node, *r.now.Load(), role)
}

// services remembers which units were in trouble.
func (r *runner) services() measurement {
	var troubles map[string]trouble
	return func(ctx context.Context) finding {
		now, s, ttl := time.Now(), r.now.Load(), r.ttl(cluster.CheckServices)
		var units []unitState
		for _, name := range slices.Concat(r.Always, r.leaderUnits(s)) {
			active, detail, err := r.Units.State(ctx, name)
			if err != nil {
				return finding{unknown, "the unit manager does not tell about " + name + ": " + because(ctx, err)}
			}
			if active == cluster.No && now.Sub(s.changed) < ttl && slices.Contains(r.Leader, name) {
				active = cluster.Unknown // it has only just become this node's to run
			}
			units = append(units, unitState{name, active, detail})
		}
		var f finding
		f, troubles = judgeServices(now, ttl, units, troubles)
		return f
	}
}

// leaderUnits are the units that only the active node runs, if this is it.
func (r *runner) leaderUnits(s *situation) []string {
	if l := s.view.Leader; l.Node == r.Node && l.Held && l.Ready {
		return r.Leader
	}
	return nil
}

func (r *runner) files(context.Context) finding {
	report, err := r.Files()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return finding{wavering, "file-sync has not reported yet"}
	case err != nil:
		return finding{bad, err.Error()}
	}
	return judgeFiles(time.Now(), config.StaleAfter, report)
}

func heartbeat(start time.Time) measurement {
	text := "check-runner runs since " + start.UTC().Format(time.RFC3339)
	return func(context.Context) finding { return finding{good, text} }
}

// because says in few words why a probe failed: a time-out for what it is, an
// error of the operating system without the layers above it.
func because(ctx context.Context, err error) string {
	var errno syscall.Errno
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "no answer in time"
	case errors.As(err, &errno):
		return errno.Error()
	}
	return err.Error()
}
