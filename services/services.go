// Package services starts, stops and observes the units of one node: through
// systemd on a host, through the node's own init in dev mode. Both have the same
// methods and the same contract.
package services

import (
	"errors"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// State is what is known of a unit at one moment.
type State struct {
	Active  cluster.Tri `json:"active"`   // Yes only while its main process runs and is ready
	Sub     string      `json:"sub"`      // in systemd's words: see the Sub constants
	MainPID int         `json:"main_pid"` // 0: there is none
	Since   time.Time   `json:"since"`    // of this Sub; zero where it never ran
	Result  string      `json:"result"`   // how the last run ended, in systemd's words: see the Result constants
}

// The values of State.Sub that the supervisor of a dev node uses. systemd has
// these and more.
const (
	SubDead        = "dead"         // never started, stopped, or ended by itself in order
	SubStartPre    = "start-pre"    // ExecStartPre
	SubStart       = "start"        // started, not ready yet (Type=notify)
	SubRunning     = "running"      // the main process runs
	SubStop        = "stop-sigterm" // KillSignal was sent
	SubFinal       = "final-sigkill"
	SubStopPost    = "stop-post"    // ExecStopPost
	SubAutoRestart = "auto-restart" // dead, to be started again after RestartSec
	SubFailed      = "failed"
)

// The values of State.Result that the supervisor of a dev node uses.
const (
	ResultSuccess   = "success"
	ResultExit      = "exit-code"
	ResultSignal    = "signal"
	ResultTimeout   = "timeout"
	ResultResources = "resources" // it could not be started at all
)

// ErrUnknownUnit is the error of a unit that has no unit file.
var ErrUnknownUnit = errors.New("no such unit")

// ErrFailed is the error of a unit that could not be started, or that could not
// be stopped in time.
var ErrFailed = errors.New("unit failed")

// ErrUnreachable is the error of a call that got no answer from systemd or from
// the node's init: nothing is known of the unit.
var ErrUnreachable = errors.New("unit manager does not answer")

// UnitName is the full name of a unit: ".service" may be left out.
func UnitName(name string) string {
	if strings.Contains(name, ".") {
		return name
	}
	return name + ".service"
}
