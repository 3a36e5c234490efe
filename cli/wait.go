package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/cli/lateflags"
	"github.com/understudy-ha/understudy/cluster"
)

// filesSeen is how long file-sync may take to see a change in a folder and to publish
// that there is one.
const filesSeen = 2 * time.Second

func waitCommand() *urfave.Command {
	return &urfave.Command{
		Name: "wait", Usage: "wait until members have all that the active node has now: its data and every file", ArgsUsage: "[NAME]...",
		UsageText: "understudy cluster nodes wait [--timeout 5m] [NAME]...\n\nWithout NAME it waits for all members. For scripts: after files were written on the active node, and before\nsomething on another one needs them. Exit code 4 when the time is up.\n\nexample: understudy cluster nodes wait beta",
		Flags:     []urfave.Flag{timeoutFlag(5 * time.Minute)},
		Action:    waitNodes,
	}
}

func waitNodes(c *urfave.Context) error {
	names, err := lateflags.Args(c)
	if err != nil {
		return usagef("%w; see '%s --help'", err, c.Command.HelpName)
	}
	m, err := openMember(c)
	if err != nil {
		return err
	}
	defer m.close()
	ctx, cancel := withTimeout(c)
	defer cancel()
	view, err := m.view(ctx)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(view.Nodes))
	}
	for _, name := range names {
		if _, ok := view.Nodes[name]; !ok {
			return unknownNode(name)
		}
	}
	from, err := active(view)
	if err != nil {
		return err
	}
	p := newProgress(c)
	step := "wait for " + strings.Join(names, ", ")
	p.begin(step)
	err = m.awaitAll(ctx, view, from, names)
	p.end(step, err)
	return err
}

// awaitAll waits until all of the nodes have what the active one has now.
func (m *member) awaitAll(ctx context.Context, view cluster.View, active cluster.Node, names []string) error {
	now, err := m.peers.Report(ctx, active)
	if err != nil {
		return fmt.Errorf("ask %s, the active node: %w", active.Name, err)
	}
	lacking := []string{fmt.Sprintf("file-sync is given %s to see what has changed; allow more with --timeout", filesSeen)}
	for pause := filesSeen; ; pause = 250 * time.Millisecond {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", ctx.Err(), strings.Join(lacking, "; "))
		case <-time.After(pause):
		}
		found := m.lacking(ctx, view, now.Position.LSN, names)
		if ctx.Err() == nil {
			lacking = found
		}
		if len(lacking) == 0 {
			return nil
		}
	}
}

// lacking says what each of the nodes lacks, of WAL up to an LSN and of files.
func (m *member) lacking(ctx context.Context, view cluster.View, upTo cluster.LSN, names []string) []string {
	each := make([]string, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() {
			try, cancel := context.WithTimeout(ctx, reportWithin)
			defer cancel()
			r, err := m.peers.Report(try, view.Nodes[name])
			if err != nil {
				each[i] = fmt.Sprintf("%s does not answer: %v", name, err)
			} else if what := lacks(view.Nodes[name].Kind, r, upTo); what != "" {
				each[i] = name + " " + what
			}
		})
	}
	all.Wait()
	return slices.DeleteFunc(each, func(s string) bool { return s == "" })
}

// lacks says what a node lacks; empty: nothing.
func lacks(kind cluster.Kind, r cluster.Report, upTo cluster.LSN) string {
	switch {
	case kind == cluster.Manager && !r.Open && !r.Streaming:
		return fmt.Sprintf("is %s, and does not stream: %s", r.State, r.Reason)
	case kind == cluster.Manager && r.Position.LSN < upTo:
		return fmt.Sprintf("is %d bytes behind", upTo-r.Position.LSN)
	case r.Files != cluster.Yes:
		return "does not have every file"
	}
	return ""
}
