package services

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
)

// TellAlive says to the unit manager that this daemon is ready, and then, until ctx
// ends, often enough for WatchdogSec= of its unit that it lives. Where nobody wants to
// know, it says nothing.
func TellAlive(ctx context.Context) {
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	within, err := daemon.SdWatchdogEnabled(false)
	if err != nil || within == 0 {
		return
	}
	tick := time.NewTicker(within / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
	}
}

// Given returns the socket that systemd has made for this daemon, by a unit of type
// socket; nil where there is none.
func Given() (net.Listener, error) {
	given, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take the socket from systemd: %w", err)
	}
	if len(given) != 1 {
		return nil, nil
	}
	return given[0], nil
}
