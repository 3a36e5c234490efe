package handlerrunner

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// fakeJournal tells the world what a host wrote into the history.
type fakeJournal struct{ h *host }

// untold are the events whose matter the story tells in other words.
var untold = []string{cluster.EventElected, cluster.EventLost, cluster.EventFollowing, cluster.EventVerdict}

var _ Journal = (*fakeJournal)(nil)

var changing = regexp.MustCompile(`[0-9A-F]+/[0-9A-F]+`)
var bytesOf = regexp.MustCompile(`\d+ bytes`)

func scrub(s string) string {
	return bytesOf.ReplaceAllString(changing.ReplaceAllString(s, "LSN"), "N bytes")
}

// Write keeps what is not told by the keys themselves.
func (j *fakeJournal) Write(kind string, epoch cluster.Epoch, message string, data any) {
	w := j.h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if j.h.dead {
		return
	}
	e := cluster.Event{ID: fmt.Sprintf("%06d", len(w.events)), At: time.Now(), Node: j.h.name, Epoch: epoch, Kind: kind, Message: message}
	e.Data, _ = json.Marshal(data) // what cannot be encoded fails the test that reads it
	w.events = append(w.events, e)
	if !slices.Contains(untold, kind) || w.sim != nil {
		w.note(j.h.name, "%s", strings.TrimPrefix(message, j.h.name+" "))
	}
	w.check()
	if kind == j.h.isolateAt {
		j.h.isolated, j.h.isolateAt = true, ""
	}
	if kind == j.h.dieAt {
		w.note(j.h.name, "loses power")
		j.h.lose()
	}
}

// synced is the log of the world, shown when a story fails.
type synced struct{ w *world }

var logMu sync.Mutex

func (s *synced) Write(b []byte) (int, error) {
	logMu.Lock()
	defer logMu.Unlock()
	return s.w.log.Write(b)
}

// tell returns the transcript since it was last asked for: what happened to the
// cluster, then on each node, then how things stand.
func (w *world) tell() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.checkData()
	var out strings.Builder
	for _, who := range append([]string{""}, w.sorted()...) {
		last := ""
		for _, n := range w.notes {
			line := strings.TrimSpace(who + " " + scrub(n.text))
			if n.node == who && line != last {
				fmt.Fprintln(&out, line)
				last = line
			}
		}
	}
	w.notes = nil
	fmt.Fprintln(&out, "=> "+w.standing())
	return out.String()
}

// standing is one line on how things stand.
func (w *world) standing() string {
	var parts []string
	for _, name := range w.sorted() {
		h := w.hosts[name]
		state := "no handler"
		switch {
		case h.dead:
			parts = append(parts, name+" dead")
			continue
		case h.frozen():
			state = "frozen"
		case h.handler != nil:
			_, d, _ := h.handler.snapshot()
			state = string(d.State)
		}
		switch s := h.pg.source(); {
		case h.kind == cluster.Runner:
		case !h.pg.running:
			state += " (stopped)"
		case h.pg.primary && h.pg.gate:
			state += " (open)"
		case h.pg.primary:
			state += " (primary)"
		case s != nil && !h.pg.gate:
			state += " (from " + s.h.name + ", shut)"
		case s != nil:
			state += " (from " + s.h.name + ")"
		default:
			state += " (alone)"
		}
		parts = append(parts, name+" "+state)
	}
	var writers []string
	for _, name := range slices.Sorted(maps.Keys(w.ackedBy)) {
		if time.Since(w.ackedBy[name]) < 200*time.Millisecond {
			writers = append(writers, name)
		}
	}
	writes := "no writes"
	if len(writers) > 0 {
		writes = "writes on " + strings.Join(writers, ", ")
	}
	return fmt.Sprintf("%s; epoch %d; %s", strings.Join(parts, ", "), w.reg.view.NextMaster.Epoch, writes)
}
