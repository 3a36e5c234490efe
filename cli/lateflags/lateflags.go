// Package lateflags lets flags stand behind arguments: the parser of flags
// stops at the first argument.
package lateflags

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// ErrFlag is the error of a flag that does not exist, that lacks its value, or
// whose value does not fit.
var ErrFlag = errors.New("wrong flag")

// Args sets the flags of the command that stand behind its first argument, and
// returns the arguments without them. After "--" everything is an argument. A
// required flag is asked for by the parser before that, and so must not be marked
// as such. The error wraps ErrFlag.
func Args(c *cli.Context) ([]string, error) {
	var args []string
	rest := c.Args().Slice()
	for len(rest) > 0 {
		word := rest[0]
		rest = rest[1:]
		if word == "--" {
			return append(args, rest...), nil
		}
		if !strings.HasPrefix(word, "-") || word == "-" {
			args = append(args, word)
			continue
		}
		var err error
		if rest, err = set(c, word, rest); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFlag, err)
		}
	}
	return args, nil
}

// set sets the flag that word names, and returns the words behind its value.
func set(c *cli.Context, word string, rest []string) ([]string, error) {
	name, value, given := strings.Cut(strings.TrimLeft(word, "-"), "=")
	i := slices.IndexFunc(c.Command.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
	if i < 0 {
		return rest, fmt.Errorf("there is no flag %s", word)
	}
	if _, isBool := c.Command.Flags[i].(*cli.BoolFlag); isBool && !given {
		value, given = "true", true
	}
	if !given && len(rest) == 0 {
		return rest, fmt.Errorf("%s needs a value", word)
	}
	if !given {
		value, rest = rest[0], rest[1:]
	}
	// The first name is the one that the command asks for.
	if err := c.Set(c.Command.Flags[i].Names()[0], value); err != nil {
		return rest, fmt.Errorf("%s: %w", word, err)
	}
	return rest, nil
}
