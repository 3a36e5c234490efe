package timeline

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/history"
)

// Width is the most columns that anything here uses.
const Width = 100

// Style says how text is marked. The zero value marks nothing.
type Style struct{ colour bool }

// StyleFor returns the style for a writer: colours on a terminal only, and none
// where NO_COLOR is set (https://no-color.org).
func StyleFor(w io.Writer) Style {
	f, ok := w.(*os.File)
	return Style{colour: ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))}
}

func (s Style) mark(code, text string) string {
	if !s.colour {
		return text
	}
	return "\033[" + code + "m" + text + "\033[0m"
}

// Bold, Dim, Good and Bad mark a text.
func (s Style) Bold(text string) string { return s.mark("1", text) }

// Dim marks what is said by the way.
func (s Style) Dim(text string) string { return s.mark("2", text) }

// Good marks what is as it should be.
func (s Style) Good(text string) string { return s.mark("32", text) }

// Bad marks what is not.
func (s Style) Bad(text string) string { return s.mark("31", text) }

// Render prints a change: a heading, a waterfall of its steps, and what is worth
// knowing about them. outage is what a client saw.
func Render(w io.Writer, s Style, number int, c Change, outage probe.Gap) {
	title := fmt.Sprintf("%d  %s", number, c.Fault.Title)
	epochs := c.Fault.At.Format("15:04:05.000")
	if c.Winner != "" {
		epochs += fmt.Sprintf(", epoch %d -> %d", c.Fault.Epoch, c.Epoch)
	}
	fmt.Fprintf(w, "\n%s%s%s\n\n", s.Bold(title), strings.Repeat(" ", max(2, Width-len(title)-len(epochs))), s.Dim(epochs))
	if c.Winner == "" {
		fmt.Fprintf(w, "   %s\n", s.Bad("no node has become writable"))
		return
	}
	waterfall(w, s, c, outage)
	fmt.Fprintln(w)
	for _, f := range facts(c, outage) {
		label := f.label
		for _, line := range wrap(f.text, Width-14, f.hang) {
			fmt.Fprintf(w, "   %s %s\n", s.Dim(fmt.Sprintf("%-10s", label)), line)
			label = ""
		}
	}
}

// bars is how wide the waterfall is.
const bars = 56

// waterfall prints a line a step; its bar begins where that of the step before
// ends.
func waterfall(w io.Writer, s Style, c Change, outage probe.Gap) {
	steps := c.Steps
	if outage.After != "" {
		steps = append(steps[:len(steps):len(steps)], history.Step{Name: "first write", At: outage.To, Node: outage.After})
	}
	total := time.Duration(1)
	for _, step := range steps {
		total = max(total, step.At.Sub(c.Fault.At))
	}
	column := func(d time.Duration) int { return int(int64(bars) * int64(max(d, 0)) / int64(total)) }
	from := 0
	for _, step := range steps {
		since := step.At.Sub(c.Fault.At)
		to := column(since)
		bar := strings.Repeat(" ", min(from, bars-1)) + strings.Repeat("█", max(1, to-from))
		mark := s.Dim
		if step.Name == "first write" {
			mark = s.Good
		}
		name := step.Name
		if name == history.Detected && c.Asked {
			name = "asked"
		}
		fmt.Fprintf(w, "   %-12s %s  %-8s %s\n", name, s.Bold(fmt.Sprintf("%9s", Millis(since))), step.Node, mark(bar))
		from = max(from, to)
	}
}

// Millis prints a duration in milliseconds, and long ones in seconds.
func Millis(d time.Duration) string {
	if d.Abs() < 10*time.Second {
		return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// fact is a line, or more where its text is long; all but the first have hang
// spaces in front.
type fact struct {
	label, text string
	hang        int
}

// facts are the lines below the waterfall.
func facts(c Change, outage probe.Gap) []fact {
	var out []fact
	add := func(label, format string, args ...any) {
		out = append(out, fact{label, fmt.Sprintf(format, args...), 0})
	}
	for i, a := range c.Answers {
		label := "answered"
		if i > 0 {
			label = ""
		}
		said := fmt.Sprintf("%-8s %s  ", a.Node, a.Position)
		fate := c.Fate(a.Node)
		if a.Node == c.Winner {
			fate = "<- " + fate
		}
		out = append(out, fact{label, said + fate, len(said)})
	}
	add("because", "%s, says %s", c.Reason, c.By)
	if c.Wasted > 0 {
		add("before", "elections whose winner did not become writable: %d", c.Wasted)
	}
	if c.Later > 0 {
		add("after", "more elections, which nothing here asked for: %d", c.Later)
	}
	if c.Start.Timeline > 0 {
		add("timeline", "%d begins at %s; commits are confirmed by %s", c.Start.Timeline, c.Start.LSN, c.Quorum)
	}
	switch f, r := c.Fault, c.Return(c.Fault.Active); {
	case r.Node == c.Winner:
		add("rejoined", "%s is the active node again", r.Node)
	case r.Standby.IsZero():
		add("rejoined", "%s has not come back", r.Node)
	default:
		how := ""
		if !f.Restarted.IsZero() {
			how += " started again at " + Millis(f.Restarted.Sub(f.At)) + ","
		}
		switch r.How {
		case "rewind":
			how += " rewound at " + Millis(r.Began.Sub(f.At)) + ","
		case "clone":
			how += " cloned anew at " + Millis(r.Began.Sub(f.At)) + ","
		}
		add("rejoined", "%s%s a standby again at %s", r.Node, how, Millis(r.Standby.Sub(f.At)))
	}
	switch {
	case outage.After == "":
		add("outage", "still going on after %s", Millis(outage.Length()))
	case outage.Before == "":
		add("outage", "%s until the first write", Millis(outage.Length()))
	default:
		add("outage", "%s between two acknowledged writes, the last by %s and the next by %s", Millis(outage.Length()), outage.Before, outage.After)
	}
	return out
}

// wrap breaks a text into lines of at most width columns, at spaces where there
// are any. Spaces within a line stay as they are; hang of them are put before each
// line but the first.
func wrap(text string, width, hang int) []string {
	var lines []string
	for len(text) > width {
		cut := strings.LastIndex(text[:width+1], " ")
		if cut <= hang {
			cut = width
		}
		lines = append(lines, strings.TrimRight(text[:cut], " "))
		text = strings.Repeat(" ", hang) + strings.TrimLeft(text[cut:], " ")
	}
	return append(lines, strings.TrimRight(text, " "))
}
