package filesync

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/syncthing/syncthing/lib/fs"
	"github.com/syncthing/syncthing/lib/ignore"
)

const (
	watchAgain = 10 * time.Second // after a watch could not be kept
	watchSame  = 5 * time.Second  // how often the folder must be found to be the same
	watchMany  = 512              // changed paths from which on the whole folder is read
)

// watch has changed paths scanned as the kernel tells of them. It stands in for
// Syncthing's own watcher, which counts its delay in whole seconds: what the
// active has not announced is lost with it.
func (e *Engine) watch(ctx context.Context, f *folder) {
	for again := false; ctx.Err() == nil; again = true {
		err := e.watchOnce(ctx, f, again)
		if missing(f.Folder) != "" {
			err = nil // the report speaks of that already
		}
		e.mu.Lock()
		f.watchErr = err
		e.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(watchAgain):
		}
	}
}

func (e *Engine) watchError(f *folder) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return f.watchErr
}

// watchOnce returns when the folder can be watched no longer. A watch that is
// taken up again begins with a scan.
func (e *Engine) watchOnce(ctx context.Context, f *folder, again bool) error {
	if missing(f.Folder) != "" {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	root := fs.NewFilesystem(f.kind, f.Path)
	patterns := ignore.New(root)
	if err := patterns.Load(ignoreFile); err != nil {
		return fmt.Errorf("read ignore patterns: %w", err)
	}
	events, broken, err := root.Watch(".", patterns, ctx, false)
	if err != nil {
		return err
	}
	e.mu.Lock()
	f.watchErr = nil
	e.mu.Unlock()
	if again {
		e.model.DelayScan(f.ID, 0) // for what happened unseen
	}
	return e.collect(ctx, f, events, broken)
}

// collect scans changed paths together, one scan at a time. Between two scans
// it leaves as much time as the last one took, so that a file that is written
// all the time does not keep a processor busy.
func (e *Engine) collect(ctx context.Context, f *folder, events <-chan fs.Event, broken <-chan error) error {
	first, err := os.Stat(f.Path)
	if err != nil {
		return err
	}
	same := time.NewTicker(watchSame)
	defer same.Stop()
	changed := map[string]bool{}
	due := time.NewTimer(0)
	<-due.C
	waiting, pause := false, e.opts.WatchDelay
	var scanned chan time.Duration // nil while no scan runs
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-broken:
			return orElse(err, errors.New("the watch ended"))
		case <-same.C: // the kernel watches what lay here at first, even after something was mounted over it
			if now, err := os.Stat(f.Path); err != nil || !os.SameFile(first, now) {
				return errors.New("the folder was replaced")
			}
		case ev := <-events:
			if len(changed) < watchMany {
				changed[ev.Name] = true
			} else {
				changed["."] = true
			}
		case took := <-scanned:
			scanned, pause = nil, max(e.opts.WatchDelay, took)
		case <-due.C:
			waiting = false
			paths := slices.Sorted(maps.Keys(changed))
			if changed["."] {
				paths = nil
			}
			clear(changed)
			result := make(chan time.Duration, 1)
			scanned = result
			go func() {
				began := time.Now()
				if err := e.model.ScanFolderSubdirs(f.ID, paths); err != nil {
					e.log.Debug("cannot scan what changed", "folder", f.ID, "err", err)
				}
				result <- time.Since(began)
			}()
		}
		if len(changed) > 0 && !waiting && scanned == nil {
			waiting = true
			due.Reset(pause)
		}
	}
}
