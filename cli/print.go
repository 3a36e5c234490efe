package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	urfave "github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/understudy-ha/understudy/membership"
)

func jsonFlag() urfave.Flag { return &urfave.BoolFlag{Name: "json", Usage: "print JSON"} }

// show prints v as JSON where that was asked for, else what text writes.
func show(c *urfave.Context, v any, text func(io.Writer)) error {
	if c.Bool("json") {
		enc := json.NewEncoder(out(c))
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	text(out(c))
	return nil
}

// table prints rows under a heading, aligned.
func table(w io.Writer, heading string, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.ReplaceAll(heading, " ", "\t"))
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	t.Flush()
}

// progress shows the steps of a command on standard error: a line that counts
// the seconds on a terminal, a plain line per step elsewhere.
type progress struct {
	w        io.Writer
	terminal bool
	began    time.Time
	stop     chan struct{}
	done     chan struct{}
}

func newProgress(c *urfave.Context) *progress {
	p := &progress{w: c.App.ErrWriter}
	if f, ok := p.w.(*os.File); ok {
		p.terminal = term.IsTerminal(int(f.Fd()))
	}
	return p
}

var _ membership.Progress = (*progress)(nil).step

func (p *progress) step(name string, done bool, err error) {
	if !done {
		p.begin(name)
		return
	}
	p.end(name, err)
}

func (p *progress) begin(name string) {
	p.began = time.Now()
	if !p.terminal {
		return
	}
	p.stop, p.done = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(p.done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			fmt.Fprintf(p.w, "\r\033[K  … %s (%.0f s)", name, time.Since(p.began).Seconds())
			select {
			case <-p.stop:
				fmt.Fprint(p.w, "\r\033[K")
				return
			case <-tick.C:
			}
		}
	}()
}

func (p *progress) end(name string, err error) {
	if p.terminal {
		close(p.stop)
		<-p.done
	}
	mark := "ok    "
	if err != nil {
		mark = "FAILED"
	}
	fmt.Fprintf(p.w, "%s  %s (%.1f s)\n", mark, name, time.Since(p.began).Seconds())
}

// note shows a line in the middle of a step.
func (p *progress) note(s string) {
	if p.terminal {
		fmt.Fprint(p.w, "\r\033[K")
	}
	fmt.Fprintf(p.w, "        %s\n", s)
}
