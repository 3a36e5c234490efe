package filesync

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/syncthing/syncthing/lib/logger"
)

// discard is the switch that keeps Syncthing's logger off standard output. It
// is read while packages are initialised, so it must be set before the start.
const discard = "LOGGER_DISCARD"

// Quiet makes sure that Syncthing does not write to standard output. Where its
// switch is not in the environment, the process is executed anew with it, and
// Quiet does not return; call it first thing in main.
func Quiet() error {
	if os.Getenv(discard) != "" {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	return fmt.Errorf("execute %s anew: %w", self, syscall.Exec(self, os.Args, append(os.Environ(), discard+"=1")))
}

// Syncthing has one logger a process; what it says goes to the engine that was
// opened last.
var (
	sink     atomic.Pointer[slog.Logger]
	sinkOnce sync.Once
)

// takeLog sends Syncthing's messages to log: its warnings as they are, and its
// rather talkative notes as debug messages.
func takeLog(log *slog.Logger) {
	sink.Store(log.With("component", "syncthing"))
	sinkOnce.Do(func() {
		logger.DefaultLogger.AddHandler(logger.LevelInfo, func(l logger.LogLevel, msg string) {
			level := slog.LevelDebug
			if l == logger.LevelWarn {
				level = slog.LevelWarn
			}
			sink.Load().Log(context.Background(), level, msg)
		})
	})
}
