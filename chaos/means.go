package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/dev/probe"
)

// clockLibraries is where Debian puts libfaketime for programs with threads.
const clockLibraries = "/usr/lib/*/faketime/libfaketimeMT.so.1"

// machine returns what can be done here.
func machine() means {
	libraries, _ := filepath.Glob(clockLibraries)
	return means{root: os.Geteuid() == 0, clock: len(libraries) > 0}
}

// diskSize is that of a node's database. A copy beside it must have room, and each of them
// keeps up to wal_keep_size of WAL.
const diskSize = "4g"

// database is the file system of a node's database when this user can mount one.
func database(root string) string { return filepath.Join(root, "var/lib/postgresql") }

func ballast(root string) string { return filepath.Join(database(root), "ballast") }

// prepare readies a node, in which there is nothing yet, for what is to be done.
func (m means) prepare(_ context.Context, n dev.Node) error {
	if m.root {
		if err := mount(n); err != nil {
			return err
		}
	}
	if m.clock {
		return wind(n)
	}
	return nil
}

// mount gives a node's database a file system of its own, so that it can be full.
func mount(n dev.Node) error {
	at := database(n.Root)
	if err := os.MkdirAll(at, 0o755); err != nil {
		return fmt.Errorf("mount a disk for %s: %w", n.Name, err)
	}
	if err := unix.Mount("understudy-chaos", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size="+diskSize); err != nil {
		return fmt.Errorf("mount a disk for %s at %s: %w", n.Name, at, err)
	}
	return nil
}

// unmount takes all disks away. Nothing may run on the nodes.
func unmount(dir string, nodes []dev.NodeInfo) error {
	var failed []error
	for _, n := range nodes {
		if err := unix.Unmount(database(n.Root), 0); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
			failed = append(failed, fmt.Errorf("unmount the disk of %s in %s: %w", n.Name, dir, err))
		}
	}
	return errors.Join(failed...)
}

// fill leaves no room on a node's disk.
func fill(root string) error {
	f, err := os.OpenFile(ballast(root), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("fill disk: %w", err)
	}
	defer f.Close()
	chunk := make([]byte, 1<<20)
	for len(chunk) > 0 {
		_, err := f.Write(chunk)
		switch {
		case errors.Is(err, syscall.ENOSPC):
			chunk = chunk[:len(chunk)/2]
		case err != nil:
			return fmt.Errorf("fill disk: %w", err)
		}
	}
	return nil
}

// useWAL has the active node begin new segments of WAL, until those that lie ready
// are used up, so that a full disk is felt. That it fails is what it is for.
func (a *arena) useWAL(ctx context.Context) {
	target, _ := a.Sides(a.newest().Node)
	a.onDatabase(ctx, target, 8, `select pg_logical_emit_message(false, 'chaos', ''), pg_switch_wal()`)
}

// onDatabase does something on a node's database, a few times or until it fails.
func (a *arena) onDatabase(ctx context.Context, target probe.Target, times int, statement string) {
	ctx, cancel := context.WithTimeout(ctx, opLimit)
	defer cancel()
	conn, err := pgx.Connect(ctx, target.DSN)
	if err != nil {
		return
	}
	defer conn.Close(ctx)
	for range times {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return
		}
	}
}

// empty undoes fill.
func empty(root string) error {
	if err := os.Remove(ballast(root)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("empty disk: %w", err)
	}
	return nil
}

// clock is the file that says how far off the clock of a node's PostgreSQL is.
func clock(root string) string { return filepath.Join(root, "clock") }

// wind gives a node's PostgreSQL a clock of its own, which is right at first.
func wind(n dev.Node) error {
	libraries, err := filepath.Glob(clockLibraries)
	if err != nil || len(libraries) == 0 {
		return fmt.Errorf("set up a clock for %s: no %s", n.Name, clockLibraries)
	}
	dropIns := filepath.Join(config.Paths(n.Root).Units, dev.PostgresUnit+".d")
	if err := os.MkdirAll(dropIns, 0o755); err != nil {
		return fmt.Errorf("set up a clock for %s: %w", n.Name, err)
	}
	text := fmt.Sprintf("[Service]\nEnvironment=LD_PRELOAD=%s FAKETIME_TIMESTAMP_FILE=%s FAKETIME_CACHE_DURATION=1 DONT_FAKE_MONOTONIC=1\n", libraries[0], clock(n.Root))
	if err := os.WriteFile(filepath.Join(dropIns, "clock.conf"), []byte(text), 0o644); err != nil {
		return fmt.Errorf("set up a clock for %s: %w", n.Name, err)
	}
	return shift(n.Root, 0)
}

// shift sets how far off a node's clock is.
func shift(root string, by time.Duration) error {
	file := clock(root)
	if err := os.WriteFile(file+".new", fmt.Appendf(nil, "%+d\n", int(by.Seconds())), 0o644); err != nil {
		return fmt.Errorf("shift clock: %w", err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return fmt.Errorf("shift clock: %w", err)
	}
	return nil
}
