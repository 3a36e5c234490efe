package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// systemdGroups are the control groups of this process in the hierarchies in which
// systemd keeps its units: version 2, and the named one of version 1 where there
// is one. A machine needs a group of its own in each, because two machines would
// otherwise take each other's units for their own.
func systemdGroups() ([]string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	var groups []string
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		var controllers string
		switch {
		case f[2] == "cgroup2":
		case f[2] == "cgroup" && strings.Contains(","+f[3]+",", ",name=systemd,"):
			controllers = "name=systemd"
		default:
			continue
		}
		if path, ok := groupPath(string(own), controllers); ok {
			groups = append(groups, filepath.Join(f[1], path))
		}
	}
	if len(groups) == 0 {
		return nil, errors.New("find control groups: neither version 2 nor systemd's of version 1 is mounted")
	}
	return groups, nil
}

// groupPath finds a hierarchy in the text of /proc/self/cgroup, whose lines are
// ID:CONTROLLERS:PATH.
func groupPath(text, controllers string) (string, bool) {
	for line := range strings.Lines(text) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && f[1] == controllers {
			return f[2], true
		}
	}
	return "", false
}

// makeGroups makes a group of this name below each of systemdGroups.
func makeGroups(name string) ([]string, error) {
	groups, err := systemdGroups()
	if err != nil {
		return nil, err
	}
	for i, parent := range groups {
		groups[i] = filepath.Join(parent, name)
		if err := os.Mkdir(groups[i], 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make control group: %w", err)
		}
	}
	return groups, nil
}

// dropGroups deletes groups with all below them, once the last process that is
// ending in them has ended. That they are empty shows that none is left.
func dropGroups(ctx context.Context, groups []string) error {
	var problems []error
	for _, group := range groups {
		problems = append(problems, until(ctx, "no process is left in "+group, func() error { return dropGroup(group) }))
	}
	return errors.Join(problems...)
}

func dropGroup(group string) error {
	entries, err := os.ReadDir(group)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := dropGroup(filepath.Join(group, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(group); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
