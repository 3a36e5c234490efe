package services

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/understudy-ha/understudy/cluster"
)

func TestJobError(t *testing.T) {
	for result, want := range map[string]error{
		"done": nil, "skipped": nil,
		"failed": ErrFailed, "timeout": ErrFailed, "canceled": ErrFailed, "dependency": ErrFailed, "something new": ErrFailed,
	} {
		if err := jobError("start", "a.service", result); !errors.Is(err, want) || (want == nil && err != nil) {
			t.Errorf("%s: got %v, want %v", result, err, want)
		}
	}
}

func TestCallError(t *testing.T) {
	unknown := godbus.Error{Name: "org.freedesktop.systemd1.NoSuchUnit", Body: []any{"Unit a.service not found."}}
	denied := godbus.Error{Name: "org.freedesktop.DBus.Error.AccessDenied", Body: []any{"Permission denied"}}
	for name, c := range map[string]struct {
		err, want error
		not       error
	}{
		"unknown unit": {unknown, ErrUnknownUnit, ErrUnreachable},
		"denied":       {denied, denied, ErrUnreachable},
		"cancelled":    {fmt.Errorf("call: %w", context.Canceled), context.Canceled, ErrUnreachable},
		"closed":       {godbus.ErrClosed, ErrUnreachable, ErrUnknownUnit},
	} {
		got := callError("start", "a.service", c.err)
		var d godbus.Error
		is := errors.Is(got, c.want)
		if name == "denied" { // godbus.Error holds a slice and cannot be compared
			is = errors.As(got, &d)
		}
		if !is || errors.Is(got, c.not) {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestStateOf(t *testing.T) {
	healthy := func() map[string]any {
		return map[string]any{
			"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "Result": "success",
			"MainPID": uint32(42), "StateChangeTimestamp": uint64(1_700_000_000_000_000),
		}
	}
	for name, c := range map[string]struct {
		change map[string]any
		want   State
		err    error
	}{
		"running":      {nil, State{cluster.Yes, "running", 42, time.Unix(1_700_000_000, 0), "success"}, nil},
		"failed":       {map[string]any{"ActiveState": "failed", "SubState": "failed", "MainPID": uint32(0), "Result": "signal"}, State{cluster.No, "failed", 0, time.Unix(1_700_000_000, 0), "signal"}, nil},
		"auto-restart": {map[string]any{"ActiveState": "activating", "SubState": "auto-restart", "MainPID": uint32(0)}, State{cluster.No, "auto-restart", 0, time.Unix(1_700_000_000, 0), "success"}, nil},
		"no unit file": {map[string]any{"LoadState": "not-found"}, State{Active: cluster.No, Sub: "not-found"}, ErrUnknownUnit},
		"never ran":    {map[string]any{"StateChangeTimestamp": uint64(0)}, State{cluster.Yes, "running", 42, time.Time{}, "success"}, nil},
		"a word of a newer systemd": {map[string]any{"ActiveState": "pondering"},
			State{cluster.Unknown, "running", 42, time.Unix(1_700_000_000, 0), "success"}, nil},
	} {
		properties := healthy()
		for k, v := range c.change {
			properties[k] = v
		}
		got, err := stateOf("a.service", properties)
		if !got.Since.Equal(c.want.Since) {
			t.Errorf("%s: since %s, want %s", name, got.Since, c.want.Since)
		}
		got.Since = c.want.Since
		if got != c.want || !errors.Is(err, c.err) || (c.err == nil && err != nil) {
			t.Errorf("%s: got %+v, %v, want %+v, %v", name, got, err, c.want, c.err)
		}
	}
}

func TestStopped(t *testing.T) {
	for name, c := range map[string]struct {
		state State
		ok    bool
	}{
		"dead":        {State{Active: cluster.No, Sub: SubDead}, true},
		"failed":      {State{Active: cluster.No, Sub: SubFailed}, true},
		"still there": {State{Active: cluster.No, Sub: SubFailed, MainPID: 42}, false},
		"runs again":  {State{Active: cluster.Yes, Sub: SubRunning, MainPID: 43}, false},
		"not known":   {State{}, false},
	} {
		if err := stopped("a.service", c.state); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMatters(t *testing.T) {
	if !matters(map[string]godbus.Variant{"SubState": godbus.MakeVariant("dead")}) {
		t.Error("a change of SubState is passed over")
	}
	if matters(map[string]godbus.Variant{"CPUUsageNSec": godbus.MakeVariant(uint64(1))}) {
		t.Error("a change of the processor time used is told")
	}
}
