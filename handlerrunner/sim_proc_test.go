package handlerrunner

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

var errGone = errors.New("the handler was killed")

// proc is one run of a handler: from its start until it is killed. What a killed
// one still does has no effect, not even on its state file.
type proc struct {
	*host
	s     *simulation
	run   int // the how manieth on this host
	calls map[string]uint64
	gone  bool
	state string // its own state file
}

// boot starts a handler with what the last one had written down.
func (s *simulation) boot(h *host) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bootLocked(h)
}

func (s *simulation) bootLocked(h *host) {
	p := &proc{host: h, s: s, calls: map[string]uint64{}}
	if last := s.procs[h.name]; last != nil {
		p.run = last.run + 1
	}
	p.state = s.stateFile(h.name, p.run)
	handler, err := New(Options{
		Node: h.name, Version: "simulation", State: p.state, Known: p.state + known,
		Store: &simStore{p}, Locks: &simLocks{p}, Postgres: simPG{h.pg, p}, Replication: simPG{h.pg, p}, Directory: simPG{h.pg, p},
		Units: simUnits{h.units, p}, Peers: simPeers{p}, Parts: simPeers{p}, Journal: simJournal{p},
		Divergence: simDivergence{&fakeDivergence{h}, p}, Storage: p.storage,
		Verdict: p.verdict, Files: p.files,
		Checkpoint: simPG{h.pg, p}.checkpoint,
		Hold:       func(time.Time) {},
		Failing: func(ctx context.Context, _ string) (map[string]string, error) {
			return map[string]string{}, p.local(ctx, "Failing", time.Millisecond, 20*time.Millisecond, func() error { return nil })
		},
		Depart: func(ctx context.Context) error {
			return p.local(ctx, "Depart", 5*time.Millisecond, 50*time.Millisecond, func() error { h.departs++; return nil })
		},
		PostgresUnit: pgUnit, AlwaysUnits: []string{alwaysUnit}, LeaderUnits: []string{leaderUnit}, Log: p.log(),
	})
	if err != nil && s.refused[h.name] {
		s.tell(h.name, "handler cannot start: %v", err)
		h.dead = false
		return
	}
	if err != nil {
		s.violate("%s does not start: %v", h.name, err)
		return
	}
	s.keepsPromise(h, handler)
	ctx, cancel := context.WithCancel(context.Background())
	h.dead, h.handler, h.stop = false, handler, cancel
	s.procs[h.name] = p
	s.tell(h.name, "handler starts")
	s.running.Go(func() {
		if err := handler.Run(ctx); err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.violate("handler of %s: %v", h.name, err)
		}
	})
}

func (s *simulation) stateFile(node string, run int) string {
	return filepath.Join(s.dir, node, strconv.Itoa(run)+".json")
}

// away is where a state file is while its folder cannot be written.
func (s *simulation) away(file string) string {
	return filepath.Join(filepath.Dir(file)+".away", filepath.Base(file))
}

// kill ends the handler of a host. The caller holds the world's lock.
func (s *simulation) kill(h *host) {
	p := s.procs[h.name]
	if p == nil || p.gone {
		return
	}
	p.gone, h.handler = true, nil
	for _, of := range []string{"", known} {
		from, to := p.state+of, s.stateFile(h.name, p.run+1)+of
		if s.refused[h.name] {
			from, to = s.away(from), s.away(to)
		}
		text, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, text, 0o600)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			s.violate("state of %s: %v", h.name, err)
		}
	}
	h.stop()
}

// known ends the name of the file with the last view of the cluster.
const known = ".view"

// roll returns the dice of the next call of that name. The world is locked.
func (p *proc) roll(op string) *dice {
	p.calls[op]++
	return diceOf(p.s.seed, p.name+op, uint64(p.run)<<32|p.calls[op])
}

// awake waits while the host, or its handler, stands still. When it goes on, not
// everything does so in the same instant.
func (p *proc) awake(d *dice) error {
	for {
		p.s.mu.Lock()
		gone, thaw := p.gone, p.thaw
		if thaw == nil {
			thaw = p.s.naps[p.name]
		}
		p.s.mu.Unlock()
		switch {
		case gone:
			return errGone
		case thaw == nil:
			return nil
		}
		<-thaw
		_ = sleep(p.s.ctx, d.upTo(ms))
	}
}

// local is a call of something on this host: it takes its time, and before and
// after it is done anything may happen. do runs under the world's lock.
func (p *proc) local(ctx context.Context, op string, least, most time.Duration, do func() error) error {
	d, err := p.pass(ctx, op, least, most)
	if err != nil {
		return err
	}
	p.s.mu.Lock()
	err = do()
	p.s.mu.Unlock()
	return errors.Join(p.after(d, op), err)
}

// pass is the way to a call; after is the way back. Both throw the dice of the
// call.
func (p *proc) pass(ctx context.Context, op string, least, most time.Duration) (*dice, error) {
	p.s.mu.Lock()
	d := p.roll(op)
	slow := p.s.slow[p.name]
	p.s.mu.Unlock()
	took := d.between(least, most)
	if slow && d.chance(0.3) {
		took *= 10
	}
	if err := sleep(ctx, took); err != nil {
		return nil, errors.Join(err, p.awake(d))
	}
	if err := p.awake(d); err != nil {
		return nil, err
	}
	p.s.strike(p, "before "+op)
	if err := p.awake(d); err != nil {
		return nil, err
	}
	return d, ctx.Err()
}

func (p *proc) after(d *dice, op string) error {
	p.s.strike(p, "after "+op)
	return p.awake(d)
}

func (p *proc) files() cluster.FilesReport {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.s.blind[p.name] {
		return cluster.FilesReport{}
	}
	return cluster.FilesReport{Complete: cluster.Yes}
}

func (p *proc) storage() cluster.StorageReport {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return cluster.StorageReport{Problem: p.pg.disk}
}

// log tells the history of what a handler warns of.
func (p *proc) log() *slog.Logger {
	if !p.s.recording {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(said{p}, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}}))
}

type said struct{ p *proc }

func (w said) Write(b []byte) (int, error) {
	w.p.s.mu.Lock()
	defer w.p.s.mu.Unlock()
	if !w.p.gone {
		w.p.s.tell(w.p.name, "%s", strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

type simJournal struct{ p *proc }

var _ Journal = simJournal{}

func (j simJournal) Write(kind string, epoch cluster.Epoch, message string, _ any) {
	s := j.p.s
	s.mu.Lock()
	if !j.p.gone {
		s.tell(j.p.name, "journal: %s (epoch %d)", message, epoch)
		s.count("journal: " + kind)
		s.check()
	}
	s.mu.Unlock()
	s.strike(j.p, "after journal "+kind)
}
