package membership

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/filesync/folders"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/packaging"
)

// ErrNotLast is the error of a teardown while the cluster has other members.
var ErrNotLast = errors.New("the cluster has other members")

// Teardown makes the last member of a cluster, or one that was removed from its, a host
// that belongs to none. The database stays, with its original configuration, and so do
// the folders; on the last member it runs again in the end. What a losing side wrote
// and versions of files that were kept stay too: the paths of these are returned.
//
// force is for a member that cannot ask the others, because too many hosts are lost. A
// teardown may be repeated until it has ended well.
func Teardown(ctx context.Context, h *node.Host, force bool, show Progress) (left []string, err error) {
	rec := &h.Record
	if rec.Node.Name == "" {
		return nil, node.ErrNotMember
	}
	free, err := alone(h)
	if err != nil {
		return nil, err
	}
	defer free()
	if rec.Command != teardown {
		if err := mayTearDown(ctx, h, force); err != nil {
			return nil, err
		}
		rec.Command, rec.Done = teardown, nil
		if err := rec.Save(h.Layout.Membership()); err != nil {
			return nil, err
		}
	}
	if err := inTurn(ctx, []step{
		{"stop the daemons", func(ctx context.Context) error { return stopDaemons(ctx, h) }},
		{"give PostgreSQL back", func(ctx context.Context) error { return giveBack(ctx, h) }},
		{"remove what is understudy's", func(context.Context) error { return sweep(h) }},
	}, show); err != nil {
		return nil, err
	}
	left = kept(h)
	if rec.Node.Kind == cluster.Manager && !rec.Removed {
		if err := h.Units().Start(ctx, h.Config.Postgres.Unit); err != nil {
			return left, err
		}
	}
	return left, errors.Join(remove(h.Layout.Membership()), remove(h.Layout.Membership()+".busy"), remove(h.Layout.Membership()+".lock"))
}

const teardown = "teardown" // of Record.Command

// mayTearDown refuses a member that is not the last.
func mayTearDown(ctx context.Context, h *node.Host, force bool) error {
	if h.Record.Removed || force {
		return nil
	}
	reg, err := h.Registry()
	if err != nil {
		return err
	}
	defer reg.Close()
	view, err := reg.View(ctx)
	if err != nil {
		return fmt.Errorf("ask who else is a member: %w; where the other hosts are lost for good, --force does without an answer", err)
	}
	delete(view.Nodes, h.Record.Node.Name)
	if others := slices.Sorted(maps.Keys(view.Nodes)); len(others) > 0 {
		return fmt.Errorf("%w: %s; 'understudy cluster nodes remove NAME' takes each out", ErrNotLast, strings.Join(others, ", "))
	}
	return nil
}

// stopDaemons stops and disables them. The dead man's switch of consul-watcher comes
// first: it would take the end of handler-runner for a failure.
func stopDaemons(ctx context.Context, h *node.Host) error {
	units := h.Units()
	order := packaging.Daemons()
	slices.SortStableFunc(order, func(a, b string) int { return last(a) - last(b) })
	for _, u := range order {
		if err := errors.Join(units.Disable(ctx, u), units.Stop(ctx, u)); err != nil {
			return err
		}
	}
	return nil
}

// last orders units of ours: what others need while they stop comes later.
func last(unit string) int {
	return slices.Index([]string{watcherUnit, handlerUnit, helperUnit, consulUnit}, unit)
}

// giveBack gives PostgreSQL and its unit back as they were found.
func giveBack(ctx context.Context, h *node.Host) error {
	if h.Record.Node.Kind != cluster.Manager {
		return nil
	}
	if err := h.Units().Stop(ctx, h.Config.Postgres.Unit); err != nil {
		return err
	}
	pg, err := h.Postgres()
	if err != nil {
		return err
	}
	defer pg.Close()
	if err := pg.Release(ctx); err != nil {
		return err
	}
	if err := unguard(h); err != nil {
		return err
	}
	// systemd reads unit files anew when one is enabled.
	if h.Record.Removed {
		return h.Units().Disable(ctx, h.Config.Postgres.Unit)
	}
	return h.Units().Enable(ctx, h.Config.Postgres.Unit)
}

// sweep deletes everything that is understudy's but the record of this teardown, and
// what is kept.
func sweep(h *node.Host) error {
	l := h.Layout
	// The folder is the package's, with an owner and a mode that the next cluster needs.
	secrets, err := filepath.Glob(filepath.Join(l.SSL, "*"))
	if err != nil {
		return err
	}
	for _, old := range append(secrets,
		l.ConsulData(), l.ConsulConfig(), l.Handler(), l.Handler()+".spare", l.Known(), l.Members(), l.Removed(), l.Polkit(), l.Operator(),
		filepath.Join(l.FileSync(), "index"), filepath.Join(l.FileSync(), "folders"), filepath.Join(l.FileSync(), "ignores"), filepath.Join(l.FileSync(), "peers.json"),
		l.Verdict(), l.Files(), l.Storage(), l.Lease(), // the helper's socket is systemd's
	) {
		if err := os.RemoveAll(old); err != nil {
			return fmt.Errorf("delete %s: %w", old, err)
		}
	}
	for _, f := range h.Config.Files {
		id, err := folders.ID(l.Root, f.Path)
		if err != nil {
			return err
		}
		if err := folders.Forget(f.Path, id); err != nil {
			return err
		}
	}
	for _, dir := range places(h) {
		removeEmpty(dir)
	}
	return nil
}

// places are where something is kept that may be all there is of it.
func places(h *node.Host) []string {
	return []string{h.Layout.Divergence(), filepath.Join(h.Layout.FileSync(), "versions"), h.Layout.FileSync()}
}

// kept are those of places that are left.
func kept(h *node.Host) (left []string) {
	for _, dir := range places(h)[:2] {
		if _, err := os.Stat(dir); err == nil {
			left = append(left, dir)
		}
	}
	return left
}

// removeEmpty deletes a folder with all folders in it, as far as they hold nothing.
func removeEmpty(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			removeEmpty(filepath.Join(dir, e.Name()))
		}
	}
	_ = os.Remove(dir) // not where something is left in it
}

func remove(file string) error {
	if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("delete %s: %w", file, err)
	}
	return nil
}
