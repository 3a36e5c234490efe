// Package deadman is a dead man's switch between two processes of one host: one
// holds it for a while at a time, the other acts when it was not held again in
// time.
package deadman

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Switch is the file that both processes know. It belongs into a directory in
// memory, such as /run: it says nothing after a boot.
type Switch string

// Watch looks at the switch when it may be time to act, and lookEvery at the latest;
// but not sooner than again, while act fails.
const (
	lookEvery = 250 * time.Millisecond
	again     = 50 * time.Millisecond
)

// size of the file: a time since boot in nanoseconds.
const size = 8

// Hold says that all is well until then. It is cheap, and may be called often.
func (s Switch) Hold(until time.Time) error {
	now, err := sinceBoot()
	if err != nil {
		return err
	}
	text := binary.BigEndian.AppendUint64(nil, uint64(now+time.Until(until)))
	temp := string(s) + ".new"
	if err := os.WriteFile(temp, text, 0o600); err != nil {
		return fmt.Errorf("hold the switch: %w", err)
	}
	if err := os.Rename(temp, string(s)); err != nil {
		return fmt.Errorf("hold the switch: %w", err)
	}
	return nil
}

// Release says that there is nothing to act on. It may be repeated.
func (s Switch) Release() error {
	if err := os.Remove(string(s)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release the switch: %w", err)
	}
	return nil
}

// Watch calls act when the switch was held until grace ago, and not since, and
// releases it when act has worked; else act is called again. It returns when ctx
// ends.
func (s Switch) Watch(ctx context.Context, grace time.Duration, act func(context.Context) error) {
	for wait := time.Duration(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = lookEvery
		until, held, err := s.read()
		now, clockErr := sinceBoot()
		if err != nil || clockErr != nil || !held {
			continue
		}
		if left := until + grace - now; left > 0 {
			wait = min(left, lookEvery)
			continue
		}
		wait = again
		if act(ctx) == nil {
			_ = s.Release() // what stays is acted on once more
		}
	}
}

func (s Switch) read() (until time.Duration, held bool, err error) {
	text, err := os.ReadFile(string(s))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err == nil && len(text) != size {
		err = fmt.Errorf("%s has %d bytes, not %d", string(s), len(text), size)
	}
	if err != nil {
		return 0, false, err
	}
	return time.Duration(binary.BigEndian.Uint64(text)), true, nil
}

// sinceBoot is a clock that both processes read alike, that no operator sets, and
// that goes on while the host sleeps.
func sinceBoot() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	return time.Duration(t.Nano()), nil
}
