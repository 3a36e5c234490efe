package handlerrunner

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

var update = flag.Bool("update", false, "write the transcripts of testdata/*.txt anew")

// healthy is how things stand after "trio".
const healthy = "=> a active (open), b standby (from a), c standby (from a); epoch 1; writes on a"

// TestStories plays testdata/*.txt. Lines of a story that begin with # are for
// the reader. Commands stand in blocks; "----" and the transcript of what they
// led to follow each. Every story also keeps the invariants of world.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got string
			synctest.Test(t, func(t *testing.T) { got = play(t, string(text)) })
			if *update && !t.Failed() {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(text) {
				t.Errorf("the story went otherwise:\n%s", difference(string(text), got))
			}
		})
	}
}

// play runs a story and returns it with the transcript that came of it.
func play(t *testing.T, text string) string {
	w := newWorld(t)
	go w.client()
	defer func() {
		w.end()
		if t.Failed() && testing.Verbose() {
			t.Log(w.log.String())
		}
	}()
	var out strings.Builder
	transcript := false
	for line := range strings.Lines(text) {
		switch {
		case transcript && strings.TrimSpace(line) != "":
			continue
		case strings.TrimSpace(line) == "----":
			transcript = true
			synctest.Wait()
			out.WriteString(line + w.tell())
			continue
		case !strings.HasPrefix(line, "#") && strings.TrimSpace(line) != "":
			if err := w.do(strings.Fields(line)); err != nil {
				t.Fatalf("%s: %v", strings.TrimSpace(line), err)
			}
		}
		transcript = false
		out.WriteString(line)
	}
	return out.String()
}

// end stops everything, so that the bubble can close.
func (w *world) end() {
	w.cancel()
	w.mu.Lock()
	for _, h := range w.hosts {
		if h.thaw != nil {
			close(h.thaw)
			h.thaw = nil
		}
		if h.stop != nil && !h.dead {
			h.lose()
		}
	}
	for id := range w.reg.sessions {
		w.reg.drop(id)
	}
	w.mu.Unlock()
	w.asked.Wait()
	for _, h := range w.hosts {
		if h.done != nil {
			<-h.done
		}
	}
}

// do carries out one command: a verb, nodes and settings.
func (w *world) do(words []string) error {
	verb, args := words[0], words[1:]
	if verb == "wait" {
		d, err := time.ParseDuration(args[0])
		time.Sleep(d)
		return err
	}
	if verb == "start" {
		for _, name := range args {
			h := w.hosts[name]
			if h == nil {
				h = w.add(name, cluster.Manager)
			}
			h.start()
			time.Sleep(223 * time.Millisecond)
		}
		return nil
	}
	if verb == "trio" {
		for _, name := range []string{"a", "b", "c"} {
			if err := w.do([]string{"start", name}); err != nil {
				return err
			}
			time.Sleep(3 * time.Second)
		}
		synctest.Wait()
		if got := w.tell(); !strings.Contains(got, healthy) {
			return fmt.Errorf("the trio did not come about:\n%s", got)
		}
		return nil
	}
	if verb == "runner" { // a host joins as one
		h := w.add(args[0], cluster.Runner)
		h.pg.complete = false
		h.start()
		return nil
	}
	if act, ok := slow[verb]; ok {
		return act(w, w.hosts[args[0]], args[1:])
	}
	act, ok := quick[verb]
	if !ok {
		return fmt.Errorf("no such command")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var h *host
	if len(args) > 0 {
		if h = w.hosts[args[0]]; h != nil {
			args = args[1:]
		}
	}
	err := act(w, h, args)
	w.reg.touch()
	w.flow()
	return err
}

// slow are commands that take their time.
var slow = map[string]func(*world, *host, []string) error{
	"kill-handler": func(_ *world, h *host, _ []string) error { h.halt(); return nil },
	"set-active-later": func(w *world, h *host, args []string) error { // does not wait for the answer
		w.asked.Go(func() { _ = h.handler.HandOver(w.ctx, args[0], "asked for") })
		return nil
	},
	"shut-down": func(_ *world, h *host, _ []string) error { // the host goes down in order
		h.handler.Retire(h.w.ctx, true)
		h.w.mu.Lock()
		defer h.w.mu.Unlock()
		h.lose()
		return nil
	},
	"retire": func(_ *world, h *host, _ []string) error { // it is about to
		h.handler.Retire(h.w.ctx, true)
		return nil
	},
	"stay": func(_ *world, h *host, _ []string) error { // it does not, after all
		h.handler.Retire(h.w.ctx, false)
		return nil
	},
	"set-active": func(w *world, h *host, args []string) error { // ask a node to make another one active
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		err := h.handler.HandOver(ctx, args[0], "asked for")
		w.mu.Lock()
		defer w.mu.Unlock()
		if err == nil {
			w.note("", "handed over to %s", args[0])
		} else {
			w.note("", "refused: %v", err)
		}
		return nil
	},
	"force": func(w *world, h *host, _ []string) error { // an operator insists
		err := h.handler.Force(context.Background())
		w.mu.Lock()
		defer w.mu.Unlock()
		if err != nil {
			w.note("", "refused: %v", err)
		}
		return nil
	},
	// A request that was on its way for long: of an election that can still
	// name somebody, or with "late", of one that was forestalled meanwhile.
	"detach": func(w *world, h *host, args []string) error {
		epoch, err := strconv.ParseUint(args[0], 10, 64)
		if err != nil {
			return err
		}
		w.mu.Lock()
		seen := w.reg.view.LeaderIndex
		w.mu.Unlock()
		if len(args) > 1 && args[1] == "late" {
			seen--
		}
		a, err := h.handler.Detach(context.Background(), "", cluster.Epoch(epoch), seen)
		w.mu.Lock()
		defer w.mu.Unlock()
		if err != nil {
			w.note("", "%s refuses: %v", h.name, err)
		} else {
			w.note("", "%s promises epoch %d", h.name, a.Epoch)
		}
		return nil
	},
}

// quick are commands that are done at once, under the world's lock.
var quick = map[string]func(*world, *host, []string) error{
	"kill":          func(_ *world, h *host, _ []string) error { h.lose(); return nil },
	"kill-at":       func(_ *world, h *host, args []string) error { h.dieAt = args[0]; return nil },
	"kill-postgres": func(_ *world, h *host, _ []string) error { h.pg.stop(false); return nil },
	"freeze":        func(_ *world, h *host, _ []string) error { h.thaw = make(chan struct{}); return nil },
	"thaw":          func(_ *world, h *host, _ []string) error { close(h.thaw); h.thaw = nil; return nil },
	"isolate":       func(_ *world, h *host, _ []string) error { h.isolated = true; return nil },
	"mute":          func(_ *world, h *host, _ []string) error { h.mute = true; return nil },
	"isolate-at":    func(_ *world, h *host, args []string) error { h.isolateAt = args[0]; return nil },
	"idle":          func(_ *world, h *host, _ []string) error { h.idle = true; return nil },
	"part": func(w *world, h *host, args []string) error { // from the rest, and from the registry
		h.part = h.name
		for _, name := range args {
			w.hosts[name].part = h.name
		}
		return nil
	},
	"reach": func(_ *world, h *host, _ []string) error { h.isolated = false; return nil },
	"write": func(_ *world, h *host, _ []string) error { h.idle = false; return nil },
	"mute-all": func(w *world, _ *host, _ []string) error {
		for _, h := range w.hosts {
			h.mute = true
		}
		return nil
	},
	"heal": func(w *world, _ *host, _ []string) error {
		for _, h := range w.hosts {
			h.isolated, h.mute, h.part, h.expired, h.pg.unplugged, h.pg.stalled = false, false, "", false, false, false
			h.verdict = cluster.Majority
		}
		w.reg.foreign = false
		return nil
	},
	"linger": func(w *world, _ *host, _ []string) error { w.reg.lingers = true; return nil },
	"arrive": func(w *world, _ *host, _ []string) error { w.reg.late(); return nil }, // what lingered
	"unplug": func(_ *world, h *host, _ []string) error { h.pg.unplugged = true; return nil },
	"stall":  func(_ *world, h *host, _ []string) error { h.pg.stalled = true; return nil },
	"pause": func(w *world, _ *host, _ []string) error {
		w.reg.view.Info.Paused = &cluster.Pause{By: "story"}
		return nil
	},
	"resume":         func(w *world, _ *host, _ []string) error { w.reg.view.Info.Paused = nil; return nil },
	"stop-postgres":  func(_ *world, h *host, _ []string) error { h.pg.stop(true); return nil },
	"start-postgres": func(_ *world, h *host, _ []string) error { h.pg.start(); return nil },
	"fill-disk":      func(_ *world, h *host, _ []string) error { h.pg.disk = "is full: 3 MB are free"; return nil },
	"free-disk":      func(_ *world, h *host, _ []string) error { h.pg.disk = ""; return nil },
	"strand":         func(_ *world, h *host, _ []string) error { h.pg.stranded = true; return nil },
	"incomplete":     func(_ *world, h *host, _ []string) error { h.pg.complete = false; return nil },
	"hang":           func(_ *world, h *host, _ []string) error { h.pg.hangs = true; return nil },
	"fail-rewinds": func(_ *world, h *host, args []string) (err error) {
		h.pg.failRewinds, err = strconv.Atoi(args[0])
		return err
	},
	"waste-rewinds": func(_ *world, h *host, args []string) (err error) { // they end well and change nothing
		h.pg.wasteRewinds, err = strconv.Atoi(args[0])
		return err
	},
	"fail-clones": func(_ *world, h *host, args []string) (err error) {
		h.pg.failClones, err = strconv.Atoi(args[0])
		return err
	},
	"break-unit": func(_ *world, h *host, args []string) error {
		h.units.up[args[0]], h.units.stuck[args[0]] = false, true
		return nil
	},
	"drag-unit": func(_ *world, h *host, args []string) (err error) { // it is down, and fails late
		h.units.up[args[0]], h.units.stuck[args[0]] = false, true
		h.units.drags, err = time.ParseDuration(args[1])
		return err
	},
	"slow-unit": func(_ *world, h *host, args []string) (err error) {
		h.units.slow[args[0]], err = time.ParseDuration(args[1])
		return err
	},
	"flap-unit": func(_ *world, h *host, args []string) error {
		h.units.up[args[0]], h.units.flaps[args[0]] = false, true
		return nil
	},
	"stick-unit": func(_ *world, h *host, args []string) error { h.units.stuck[args[0]] = true; return nil },
	"immortal":   func(_ *world, h *host, _ []string) error { h.units.stuck[pgUnit] = true; return nil },
	"mortal":     func(_ *world, h *host, _ []string) error { h.units.stuck[pgUnit] = false; return nil },
	"stop-unit":  func(_ *world, h *host, args []string) error { h.units.up[args[0]] = false; return nil },
	"run-unit":   func(_ *world, h *host, args []string) error { h.units.up[args[0]] = true; return nil },
	"fail-promotes": func(_ *world, h *host, args []string) (err error) {
		h.pg.failPromotes, err = strconv.Atoi(args[0])
		return err
	},
	"lag": func(_ *world, h *host, args []string) (err error) {
		h.lag, err = time.ParseDuration(args[0])
		return err
	},
	"checkpoints": func(_ *world, h *host, args []string) (err error) {
		h.pg.checkpoints, err = time.ParseDuration(args[0])
		return err
	},
	"verdict": func(_ *world, h *host, args []string) error { h.verdict = cluster.Verdict(args[0]); return nil },
	// The registry hears of a failed check that passes again.
	"tell-late": func(w *world, h *host, _ []string) error { w.reg.tellLate(h); return nil },
	// The agent takes the checks for expired: it stood still, and has not heard of them yet.
	"expire":       func(_ *world, h *host, _ []string) error { h.expired = true; return nil },
	"drop-session": func(w *world, _ *host, _ []string) error { w.reg.drop(w.reg.view.Leader.Session); return nil },
	// A hand-over that wrote its intent and never learnt that it had.
	"yield": func(w *world, _ *host, _ []string) error {
		w.reg.view.Leader.Ready, w.reg.view.Leader.Yields = false, true
		w.reg.view.LeaderIndex = w.reg.index + 1
		return nil
	},
	"foreign": func(w *world, _ *host, _ []string) error { w.reg.foreign = true; return nil },
	"wipe": func(w *world, _ *host, _ []string) error {
		w.reg.foreign = true
		w.reg.drop(w.reg.view.Leader.Session)
		return nil
	},
	"remove": func(w *world, h *host, _ []string) error {
		delete(w.reg.view.Nodes, h.name)
		w.reg.view.Removed[h.name] = cluster.Tombstone{Node: h.name}
		return nil
	},
	"option": func(w *world, h *host, args []string) error { // of the cluster, or of a node
		name, value, _ := strings.Cut(args[0], "=")
		o := cluster.Options{name: value}
		if h == nil {
			w.reg.view.Info.Options = w.reg.view.Info.Options.With(o)
			return cluster.CheckOptions(o, false)
		}
		n := w.reg.view.Nodes[h.name]
		n.Options = n.Options.With(o)
		w.reg.view.Nodes[h.name] = n
		return cluster.CheckOptions(o, true)
	},
}

// difference shows the lines from the first one that differs on.
func difference(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	i := 0
	for i < min(len(a), len(b)) && a[i] == b[i] {
		i++
	}
	show := func(lines []string) string {
		return strings.Join(lines[min(i, len(lines)):min(i+12, len(lines))], "\n\t")
	}
	return fmt.Sprintf("line %d, want\n\t%s\ngot\n\t%s", i+1, show(a), show(b))
}
