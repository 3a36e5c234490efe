package dev

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// followEvery is how often Logs looks for new lines.
const followEvery = 200 * time.Millisecond

// tailBytes bounds how far back in a file the last lines are looked for.
const tailBytes = 256 << 10

// Logs writes the last lines of every log of a node, or of all when node is
// empty, each line after the node's and the component's name. With follow it goes
// on with what is added until ctx ends.
func Logs(ctx context.Context, w io.Writer, dir, node string, lines int, follow bool) error {
	c, err := Open(dir)
	if err != nil {
		return err
	}
	nodes := c.Nodes
	if node != "" {
		n, err := c.node(node)
		if err != nil {
			return err
		}
		nodes = []Node{n}
	}
	tails := make(map[string]*tail)
	for first := true; ; first = false {
		for _, n := range nodes {
			files, err := n.logFiles()
			if err != nil {
				return fmt.Errorf("read logs of %s: %w", n.Name, err)
			}
			for _, file := range files {
				t := tails[file]
				if t == nil {
					t = &tail{file: file, label: fmt.Sprintf("%s %-15s ", n.Name, strings.TrimPrefix(strings.TrimSuffix(filepath.Base(file), ".log"), "understudy-"))}
					tails[file] = t
				}
				last := lines
				if !first {
					last = -1
				}
				if err := t.print(w, last); err != nil {
					return fmt.Errorf("read logs of %s: %w", n.Name, err)
				}
			}
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followEvery):
		}
	}
}

// tail is how far a log has been printed.
type tail struct {
	file, label string
	offset      int64
}

// print writes the whole lines that have come since the last time; at most the
// last ones, unless last is negative.
func (t *tail) print(w io.Writer, last int) error {
	f, err := os.Open(t.file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() < t.offset {
		t.offset = 0 // it was begun anew
	}
	if last >= 0 {
		t.offset = max(t.offset, info.Size()-tailBytes)
	}
	text, err := io.ReadAll(io.NewSectionReader(f, t.offset, info.Size()-t.offset))
	if err != nil {
		return err
	}
	whole := text[:bytes.LastIndexByte(text, '\n')+1]
	t.offset += int64(len(whole))
	list := strings.SplitAfter(strings.TrimSuffix(string(whole), "\n"), "\n")
	if len(whole) == 0 {
		return nil
	}
	if last >= 0 && len(list) > last {
		list = list[len(list)-last:]
	}
	for _, line := range list {
		if _, err := fmt.Fprintln(w, t.label+strings.TrimSuffix(line, "\n")); err != nil {
			return err
		}
	}
	return nil
}
