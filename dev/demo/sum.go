package demo

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/timeline"
)

// sum is what came of the whole demo.
type sum struct {
	journal     probe.Journal
	found       []probe.Finding
	longest     time.Duration // without an acknowledgement
	noteProblem error
	took        time.Duration
}

// lost counts the acknowledged rows that at least one node does not have.
func (s sum) lost() int {
	ids := make(map[int64]bool)
	for _, f := range s.found {
		for _, id := range f.Lost {
			ids[id] = true
		}
	}
	return len(ids)
}

// verdict is nil when every one of the nodes was looked at and is sound.
func (s sum) verdict(nodes int) error {
	for _, f := range s.found {
		if !f.Sound() {
			return fmt.Errorf("%w: on %s %d rows are lost, %d are there twice, %d should not be there",
				ErrLost, f.Node, len(f.Lost), len(f.Twice), len(f.Uncalled))
		}
	}
	if len(s.found) < nodes {
		return fmt.Errorf("the rows were checked on %d of %d nodes only", len(s.found), nodes)
	}
	if s.noteProblem != nil {
		return fmt.Errorf("%w: %v", ErrLost, s.noteProblem)
	}
	return nil
}

func (s sum) print(w io.Writer, style timeline.Style) {
	var nodes []string
	landed := 0
	for _, f := range s.found {
		nodes = append(nodes, f.Node)
		landed = max(landed, f.Landed)
	}
	lost := style.Good("0 lost")
	if n := s.lost(); n > 0 {
		lost = style.Bad(fmt.Sprintf("%d LOST", n))
	}
	note := style.Good("the note and its attachment are on every node")
	if s.noteProblem != nil {
		note = style.Bad(s.noteProblem.Error())
	}
	line := func(label, format string, args ...any) {
		fmt.Fprintf(w, "   %s %s\n", style.Dim(fmt.Sprintf("%-10s", label)), fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(w, "\n%s\n\n", style.Bold("All in all"))
	line("writes", "%d acknowledged, %d indeterminate (%d of them are there), %s",
		len(s.journal.Acks), len(s.journal.Indeterminate), landed, lost)
	if len(nodes) == 0 {
		nodes = []string{"no node"}
	}
	line("checked", "row by row on %s, after all of them had caught up", strings.Join(nodes, ", "))
	line("outage", "%s at the longest", timeline.Millis(s.longest))
	line("notes", "%s", note)
	line("took", "%.1f s", s.took.Seconds())
	fmt.Fprintln(w)
}
