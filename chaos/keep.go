package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/understudy-ha/understudy/config"
)

// keep puts the logs of all nodes, the history, the looks at next-master, the cluster's
// events and the report into a folder.
func (r *run) keep(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("keep logs: %w", err)
	}
	var failed []error
	for _, n := range r.Rig.Nodes {
		to := filepath.Join(dir, n.Name)
		if err := os.CopyFS(to, os.DirFS(config.Paths(n.Root).Log)); err != nil {
			failed = append(failed, fmt.Errorf("keep logs of %s: %w", n.Name, err))
		}
	}
	within, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	events, err := r.Events(within, r.began)
	failed = append(failed, err,
		writeLines(filepath.Join(dir, "events.jsonl"), events),
		writeLines(filepath.Join(dir, "history.jsonl"), r.all()),
		writeLines(filepath.Join(dir, "next-master.jsonl"), r.allLooks()),
		writeLines(filepath.Join(dir, "report.jsonl"), []Report{r.report}))
	return errors.Join(failed...)
}

// writeLines writes one line of JSON for each entry.
func writeLines[T any](file string, list []T) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("keep %s: %w", filepath.Base(file), err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	out := json.NewEncoder(w)
	for _, entry := range list {
		if err := out.Encode(entry); err != nil {
			return fmt.Errorf("keep %s: %w", filepath.Base(file), err)
		}
	}
	return w.Flush()
}
