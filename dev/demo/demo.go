// Package demo shows what a cluster is for: it is hurt twice and handed over
// once, while a writer writes and a note with an attachment lies on it.
package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/rig"
	"github.com/understudy-ha/understudy/dev/timeline"
)

// Options say where the demo runs.
type Options struct {
	Dir          string
	FirstAddress string
	Bin          string // folder of our binaries; empty: that of this one
	Keep         bool   // leave the cluster up
	Out          io.Writer
}

const (
	recoverWithin = 45 * time.Second // each fault, until the cluster is as good as new
	filesWithin   = 20 * time.Second // an attachment, until it is on every node
	breath        = time.Second      // writing between the faults
)

// ErrLost is the error of a demo in which something acknowledged is not there.
var ErrLost = errors.New("something that was acknowledged is lost")

// show is one run of the demo.
type show struct {
	Options
	style timeline.Style
	began time.Time
	rig   *rig.Rig
	notes *notes

	writer *probe.Writer
	status rig.Status
	acts   []act
	noteID int64
}

// act is one fault and how long it took to get over it.
type act struct {
	fault   timeline.Fault
	end     time.Time // when the next act began
	healthy time.Duration
}

// Run makes a cluster, shows it, and takes it down, also when ctx ends. The error
// wraps ErrLost, or says what did not recover.
func Run(ctx context.Context, o Options) (err error) {
	s := &show{Options: o, style: timeline.StyleFor(o.Out), began: time.Now(), notes: newNotes()}
	s.say("making a cluster of three nodes in %s", o.Dir)
	s.rig, err = rig.Up(ctx, dev.UpOptions{Dir: o.Dir, FirstAddress: o.FirstAddress, Bin: o.Bin, Progress: &steps{to: o.Out}})
	if err != nil {
		return err
	}
	defer func() {
		if o.Keep {
			fmt.Fprintf(o.Out, "The cluster is left up in %s; 'understudy dev down --dir %s' takes it down.\n", o.Dir, o.Dir)
			return
		}
		s.say("taking the cluster down")
		err = errors.Join(err, s.rig.Down(ctx))
	}()
	if err := s.prepare(ctx); err != nil {
		return err
	}
	return s.perform(ctx)
}

func (s *show) say(format string, args ...any) {
	fmt.Fprintf(s.Out, "%s %s\n", s.style.Dim(fmt.Sprintf("[%5.1fs]", time.Since(s.began).Seconds())), fmt.Sprintf(format, args...))
}

// steps passes on the steps of dev up, without what each command on a node says.
type steps struct{ to io.Writer }

func (s *steps) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte(" | ")) {
		return len(line), nil
	}
	return s.to.Write(line)
}

const noteText = "Remember the milk."

// attachment is more than one block of Syncthing.
var attachment = bytes.Repeat([]byte("one litre, semi-skimmed\n"), 16<<10)

// prepare waits until the cluster is healthy and leaves a note on it.
func (s *show) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, recoverWithin)
	defer cancel()
	var err error
	if s.status, err = s.rig.AwaitHealthy(ctx, 0); err != nil {
		return err
	}
	s.say("%s is active, %s are its standbys, all healthy", s.status.Active, strings.Join(s.status.Standbys(), " and "))
	active, _ := s.rig.Node(s.status.Active)
	err = retry(ctx, func() (err error) {
		s.noteID, err = s.notes.add(ctx, active.NotesURL, noteText, "shopping.txt", attachment)
		return err
	})
	if err != nil {
		return err
	}
	sent := time.Now()
	if err := s.checkNote(ctx, s.status.Standbys()); err != nil {
		return err
	}
	s.say("a note with an attachment of %d kB, written on %s, could be read on the standbys %s later",
		len(attachment)>>10, active.Name, timeline.Millis(time.Since(sent)))
	return nil
}

// checkNote waits until the note is there, whole, on these nodes.
func (s *show) checkNote(ctx context.Context, nodes []string) error {
	ctx, cancel := context.WithTimeout(ctx, filesWithin)
	defer cancel()
	for _, name := range nodes {
		n, _ := s.rig.Node(name)
		err := retry(ctx, func() error { return s.notes.check(ctx, n.NotesURL, s.noteID, noteText, attachment) })
		if err != nil {
			return fmt.Errorf("the note on %s: %w", name, err)
		}
	}
	return nil
}

// perform runs the faults under a writer, and tells what came of it. What has
// happened is told also when something did not recover.
func (s *show) perform(ctx context.Context) error {
	var err error
	if s.writer, err = probe.Open(ctx, probe.Options{Targets: s.rig.Targets(), Name: "demo"}); err != nil {
		return err
	}
	writing, stop := context.WithCancel(ctx)
	defer stop()
	wrote := make(chan error, 1)
	go func() { wrote <- s.writer.Run(writing) }()
	s.say("a writer begins: one row a transaction, one every 5 ms, to whichever node takes it")

	performed := s.faults(ctx)
	if performed == nil {
		performed = pause(ctx, breath)
	}
	stop()
	performed = errors.Join(performed, <-wrote)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(performed, s.tell(ctx))
}

func (s *show) faults(ctx context.Context) error {
	for _, fault := range []func(context.Context) error{s.killPostgres, s.killNode, s.handOver} {
		if err := pause(ctx, breath); err != nil {
			return err
		}
		if err := fault(ctx); err != nil {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func (s *show) killPostgres(ctx context.Context) error {
	active := s.status.Active
	return s.act(ctx, "kill -9 of PostgreSQL on "+active, func(ctx context.Context, _ *timeline.Fault) error {
		return dev.Kill(ctx, s.Dir, active, "postgres")
	})
}

// killNode takes the active node down and starts it again when another one has
// taken over.
func (s *show) killNode(ctx context.Context) error {
	active := s.status.Active
	return s.act(ctx, "power cut on "+active, func(ctx context.Context, f *timeline.Fault) error {
		if err := dev.Kill(ctx, s.Dir, active, dev.All); err != nil {
			return err
		}
		for s.writer.Last().Node == active || s.writer.Last().At.Before(f.At) {
			if err := pause(ctx, 10*time.Millisecond); err != nil {
				return fmt.Errorf("no other node takes writes: %w", err)
			}
		}
		f.Restarted = time.Now()
		return dev.Start(ctx, s.Dir, active)
	})
}

func (s *show) handOver(ctx context.Context) error {
	active, target := s.status.Active, s.status.Standbys()[0]
	return s.act(ctx, "set-active "+target, func(ctx context.Context, _ *timeline.Fault) error {
		return s.rig.SetActive(ctx, active, target)
	})
}

// act does something to the cluster and waits until it is as good as new.
func (s *show) act(ctx context.Context, title string, do func(context.Context, *timeline.Fault) error) error {
	ctx, cancel := context.WithTimeout(ctx, recoverWithin)
	defer cancel()
	s.say("%s", s.style.Bold(title))
	if n := len(s.acts); n > 0 {
		s.acts[n-1].end = time.Now()
	}
	s.acts = append(s.acts, act{fault: timeline.Fault{Title: title, At: time.Now(), Active: s.status.Active, Epoch: s.status.Epoch}})
	a := &s.acts[len(s.acts)-1]
	before := s.status.Epoch
	if err := do(ctx, &a.fault); err != nil {
		return fmt.Errorf("%s: %w", title, err)
	}
	status, err := s.rig.AwaitHealthy(ctx, before)
	if err != nil {
		return fmt.Errorf("after %s: %w", title, err)
	}
	s.status, a.healthy = status, time.Since(a.fault.At)
	s.say("%s is active, epoch %d; every node is healthy again after %s", s.style.Good(status.Active), status.Epoch, timeline.Millis(a.healthy))
	return nil
}

// tell prints the story and the sum, after it has looked for every row and for
// the note on every node.
func (s *show) tell(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, recoverWithin)
	defer cancel()
	now, j := time.Now(), s.writer.Journal()
	// Where something did not recover, another node may be active now.
	if status, err := s.rig.Status(ctx); err == nil && status.Active != "" {
		s.status = status
	}
	sum := sum{journal: j, took: now.Sub(s.began)}
	events, err := s.rig.Events(ctx, s.began)
	for i, a := range s.acts {
		if a.end.IsZero() {
			a.end = now
		}
		change, problem := timeline.Read(a.fault, events, a.end)
		err = errors.Join(err, problem)
		gap := j.Longest(a.fault.At, a.end)
		sum.longest = max(sum.longest, gap.Length())
		timeline.Render(s.Out, s.style, i+1, change, gap)
	}
	active, others := s.rig.Sides(s.status.Active)
	found, problem := probe.Verify(ctx, j, active, others...)
	sum.found, sum.noteProblem = found, s.checkNote(ctx, append([]string{s.status.Active}, s.status.Standbys()...))
	sum.print(s.Out, s.style)
	return errors.Join(err, problem, sum.verdict(len(s.rig.Nodes)))
}
