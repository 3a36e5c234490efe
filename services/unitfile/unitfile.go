// Package unitfile reads the part of systemd's service units that the
// supervisor of a dev node understands. What it does not understand and what
// would change how a service behaves is an error; what only describes or hardens
// it is passed over.
package unitfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
)

// Unit is one service.
type Unit struct {
	Name             string    // with .service
	Type             string    // simple, exec or notify
	StartPre         []Command // one after the other, before Start
	Start            Command   // the main process
	StopPost         []Command // after the main process and its children have gone
	User, Group      string    // empty: those of the supervisor
	Environment      []string  // NAME=value
	WorkingDirectory string    // empty: /
	Restart          string    // no, on-failure or always
	RestartSec       time.Duration
	KillMode         string // control-group or mixed
	KillSignal       syscall.Signal
	FinalKillSignal  syscall.Signal
	TimeoutStart     time.Duration // 0: no limit
	TimeoutStop      time.Duration // 0: no limit
	LimitNOFILE      uint64        // 0: as the supervisor's
	Conditions       []Condition
	After            []string // units that are started before this one and stopped after it
	WantedBy         []string // targets, of [Install]
}

// Command is one command line.
type Command struct {
	Argv          []string // Argv[0] is an absolute path
	IgnoreFailure bool     // it was written with a leading "-"
	AsRoot        bool     // it was written with a leading "+": whatever the unit's user
}

// Condition is a ConditionPathExists: where it does not hold the unit is not
// started, and that is no failure.
type Condition struct {
	Path string
	Not  bool
}

// Holds says whether the unit may be started.
func (c Condition) Holds() bool {
	_, err := os.Stat(c.Path)
	return (err == nil) != c.Not
}

// Load reads dir/NAME and the drop-ins dir/NAME.d/*.conf over it. A unit that
// does not exist is an error that wraps fs.ErrNotExist.
func Load(dir, name string) (Unit, error) {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return Unit{}, fmt.Errorf("read unit %s: %w", name, err)
	}
	texts := []string{string(text)}
	dropIns, err := filepath.Glob(filepath.Join(dir, name+".d", "*.conf"))
	if err != nil {
		return Unit{}, fmt.Errorf("read drop-ins of %s: %w", name, err)
	}
	for _, file := range dropIns {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Unit{}, fmt.Errorf("read drop-in: %w", err)
		}
		texts = append(texts, string(text))
	}
	return Parse(name, texts...)
}

// Parse reads a unit from the text of its file and of its drop-ins, in the order
// in which they apply.
func Parse(name string, texts ...string) (Unit, error) {
	u := Unit{
		Name: name, Type: "simple", Restart: "no", RestartSec: time.Second, KillMode: "control-group",
		KillSignal: syscall.SIGTERM, FinalKillSignal: syscall.SIGKILL,
		TimeoutStart: 90 * time.Second, TimeoutStop: 90 * time.Second,
	}
	for _, text := range texts {
		options, err := unit.DeserializeOptions(strings.NewReader(text))
		if err != nil {
			return Unit{}, fmt.Errorf("unit %s: %w", name, err)
		}
		for _, o := range options {
			value := strings.TrimSpace(strings.ReplaceAll(o.Value, "\\\n", " "))
			if err := u.set(o.Section, o.Name, value); err != nil {
				return Unit{}, fmt.Errorf("unit %s: [%s] %s=%s: %w", name, o.Section, o.Name, value, err)
			}
		}
	}
	if len(u.Start.Argv) == 0 {
		return Unit{}, fmt.Errorf("unit %s: no ExecStart", name)
	}
	return u, nil
}

// Directives that describe or harden a service, or that draw in others: the
// supervisor starts what it is told to start.
var passedOver = []string{
	"Description", "Documentation", "Wants", "PartOf", "RequiresMountsFor",
	"SyslogIdentifier", "StandardOutput", "StandardError", "PIDFile", "ExecReload", "OOMScoreAdjust", "UMask",
	"NoNewPrivileges", "PrivateTmp", "PrivateDevices", "Slice", "RuntimeDirectoryPreserve", "LockPersonality",
	"MemoryDenyWriteExecute", "ReadWritePaths", "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime",
	"RestrictSUIDSGID", "SystemCallArchitectures", "SystemCallFilter", "SystemCallErrorNumber", "PrivateMounts", "ProcSubset",
	"WatchdogSec", "StateDirectory", "StateDirectoryMode", "SupplementaryGroups", "CapabilityBoundingSet", "AmbientCapabilities",
}

func cosmetic(section, name string) bool {
	return strings.HasPrefix(name, "Protect") || slices.Contains(passedOver, name) || strings.HasPrefix(section, "X-")
}

var errUnsupported = errors.New("this directive is not supported in dev mode")

func (u *Unit) set(section, name, value string) (err error) {
	switch section {
	case "Unit":
		switch name {
		case "ConditionPathExists":
			if value == "" {
				u.Conditions = nil
				return nil
			}
			path, not := strings.CutPrefix(value, "!")
			u.Conditions = append(u.Conditions, Condition{path, not})
			return nil
		case "After":
			u.After = append(u.After, strings.Fields(value)...)
			return nil
		case "StartLimitIntervalSec":
			if value != "0" {
				return errors.New("only 0 is supported in dev mode")
			}
			return nil
		}
	case "Install":
		if name == "WantedBy" {
			u.WantedBy = append(u.WantedBy, strings.Fields(value)...)
			return nil
		}
	case "Service":
		if known, err := u.setService(name, value); known {
			return err
		}
	}
	if cosmetic(section, name) {
		return nil
	}
	return errUnsupported
}

func (u *Unit) setService(name, value string) (known bool, err error) {
	switch name {
	case "Type":
		u.Type, err = value, oneOf(value, "simple", "exec", "notify")
	case "ExecStartPre":
		u.StartPre, err = u.command(u.StartPre, value)
	case "ExecStart":
		var c []Command
		if c, err = u.command(nil, value); err == nil && len(c) == 1 && len(u.Start.Argv) > 0 {
			err = errors.New("a second ExecStart")
		} else if len(c) == 1 {
			u.Start = c[0]
		} else {
			u.Start = Command{}
		}
	case "ExecStopPost":
		u.StopPost, err = u.command(u.StopPost, value)
	case "ExecStop":
		if value != "" {
			err = errUnsupported
		}
	case "User":
		u.User = value
	case "Group":
		u.Group = value
	case "Environment":
		var words []string
		if value == "" {
			u.Environment = nil
		} else if words, err = Split(value, u.Name); err == nil {
			u.Environment = append(u.Environment, words...)
		}
	case "WorkingDirectory":
		u.WorkingDirectory = value
	case "Restart":
		u.Restart, err = value, oneOf(value, "no", "on-failure", "always")
	case "RestartSec":
		u.RestartSec, err = span(value)
	case "KillMode":
		u.KillMode, err = value, oneOf(value, "control-group", "mixed")
	case "KillSignal":
		u.KillSignal, err = signal(value)
	case "FinalKillSignal":
		u.FinalKillSignal, err = signal(value)
	case "TimeoutStartSec":
		u.TimeoutStart, err = span(value)
	case "TimeoutStopSec":
		u.TimeoutStop, err = span(value)
	case "TimeoutSec":
		u.TimeoutStop, err = span(value)
		u.TimeoutStart = u.TimeoutStop
	case "LimitNOFILE":
		u.LimitNOFILE, err = strconv.ParseUint(value, 10, 64)
	default:
		return false, nil
	}
	return true, err
}

// command adds one command line to a list; an empty value empties the list.
func (u *Unit) command(list []Command, value string) ([]Command, error) {
	if value == "" {
		return nil, nil
	}
	line, ignore := strings.CutPrefix(value, "-")
	line, root := strings.CutPrefix(line, "+")
	argv, err := Split(line, u.Name)
	if err != nil {
		return nil, err
	}
	if len(argv) == 0 || !filepath.IsAbs(argv[0]) {
		return nil, errors.New("the command must be an absolute path")
	}
	return append(list, Command{Argv: argv, IgnoreFailure: ignore, AsRoot: root}), nil
}

func oneOf(value string, known ...string) error {
	if !slices.Contains(known, value) {
		return fmt.Errorf("only %s are supported in dev mode", strings.Join(known, ", "))
	}
	return nil
}
