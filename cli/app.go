// Package cli holds the commands of understudy: their flags, what they print,
// and which exit code their errors have.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/chaos"
	"github.com/understudy-ha/understudy/cli/lateflags"
	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/dev/bench"
	"github.com/understudy-ha/understudy/dev/demo"
	"github.com/understudy-ha/understudy/membership"
	"github.com/understudy-ha/understudy/node"
)

// The exit codes. Zero is success.
const (
	exitFailed   = 1
	exitUsage    = 2
	exitNoActive = 3
	exitTimeout  = 4
)

var errNoActive = errors.New("the cluster has no active node")

// usageError is a wrong command line.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// ExitCode tells with which code a command ends that returned err.
func ExitCode(err error) int {
	var usage usageError
	var coded urfave.ExitCoder
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage), errors.Is(err, membership.ErrUsage), errors.Is(err, certs.ErrMistyped):
		return exitUsage
	case errors.Is(err, errNoActive):
		return exitNoActive
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	case errors.As(err, &coded):
		return coded.ExitCode()
	}
	return exitFailed
}

// App is the whole command line.
func App() *urfave.App {
	app := &urfave.App{
		Name:                 "understudy",
		Usage:                "one active and several hot standbys of an application made of PostgreSQL, files and services",
		Version:              node.Version,
		EnableBashCompletion: true,
		Suggest:              true,
		HideHelpCommand:      true,
		// An option's value may have commas.
		DisableSliceFlagSeparator: true,
		Flags: []urfave.Flag{
			&urfave.StringFlag{Name: "root", Value: "/", EnvVars: []string{"UNDERSTUDY_ROOT"},
				Usage: "act as on the node whose paths are all under `DIR`"},
		},
		Commands: []*urfave.Command{clusterCommand(), divergenceCommand(), certsCommand(), haproxyCommand(), permitCommand(), devCommand()},
		// The error is printed once, by main.
		ExitErrHandler: func(*urfave.Context, error) {},
		OnUsageError:   onUsageError,
		Action:         unknownCommand,
	}
	app.Setup()
	everyCommand(app.Commands, func(c *urfave.Command) {
		c.OnUsageError = onUsageError
		if len(c.Subcommands) > 0 && c.Action == nil {
			c.Action = unknownCommand
		}
	})
	return app
}

// devCommand is "understudy dev" with what is shown and measured on it.
func devCommand() *urfave.Command {
	d := dev.Commands()
	d.Subcommands = append(d.Subcommands, demo.Command(), bench.Command(), chaos.Command())
	return d
}

func everyCommand(list []*urfave.Command, f func(*urfave.Command)) {
	for _, c := range list {
		f(c)
		everyCommand(c.Subcommands, f)
	}
}

func onUsageError(c *urfave.Context, err error, _ bool) error {
	return usagef("%w; see '%s --help'", err, c.Command.HelpName)
}

// unknownCommand prints the help where nothing was asked for, and refuses what
// does not exist.
func unknownCommand(c *urfave.Context) error {
	if c.Args().Present() {
		return usagef("there is no command %q; see '%s --help'", c.Args().First(), c.Command.HelpName)
	}
	if c.Command.HelpName == "" || len(c.Lineage()) <= 2 {
		return urfave.ShowAppHelp(c)
	}
	return urfave.ShowSubcommandHelp(c)
}

// exactly returns the arguments, as many as are named. Flags may stand behind
// them too.
func exactly(c *urfave.Context, names ...string) ([]string, error) {
	args, err := lateflags.Args(c)
	if err != nil {
		return nil, usagef("%w; see '%s --help'", err, c.Command.HelpName)
	}
	if len(args) != len(names) {
		return nil, usagef("%d arguments given, %d wanted: %s %s", len(args), len(names), c.Command.HelpName, strings.Join(names, " "))
	}
	return args, nil
}

func out(c *urfave.Context) io.Writer { return c.App.Writer }
