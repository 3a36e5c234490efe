package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// locked waits for the lock on a file. It falls with the process that holds it.
func locked(ctx context.Context, file string) (free func(), err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = until(ctx, "nobody else holds "+file, func() error {
		return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	})
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// inUse marks a folder of the cache as used until free is called or this process
// ends. Several may use one.
func inUse(dir string) (free func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH); err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// sweep deletes the folders of the cache that match, that nobody uses, and that
// have not changed for so long; with them the control groups of their machines. The
// caller holds the lock of the cache.
func sweep(ctx context.Context, pattern string, unchanged time.Duration) error {
	dirs, err := filepath.Glob(filepath.Join(Cache, pattern))
	problems := []error{err}
	for _, dir := range dirs {
		problems = append(problems, sweepOne(ctx, dir, unchanged))
	}
	return errors.Join(problems...)
}

func sweepOne(ctx context.Context, dir string, unchanged time.Duration) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil || time.Since(info.ModTime()) < unchanged {
		return nil
	}
	parents, err := systemdGroups()
	problems := []error{err}
	for _, parent := range parents {
		groups, err := filepath.Glob(filepath.Join(parent, filepath.Base(dir)+"-*"))
		problems = append(problems, err, dropGroups(ctx, groups))
	}
	return errors.Join(append(problems, os.RemoveAll(dir))...)
}
