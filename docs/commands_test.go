package docs

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	urfave "github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/cli"
)

// Every understudy command in a block or in the prose exists, with its flags and
// a number of arguments that it may have.
func TestCommandsExist(t *testing.T) {
	app := cli.App()
	checked := map[string]bool{}
	check := func(where, line string) {
		for _, args := range invocations(line) {
			path, err := resolve(app, args)
			if err != nil {
				t.Errorf("%s: %s: %v", where, strings.Join(args, " "), err)
			}
			checked[strings.Join(path, " ")] = true
		}
	}
	for _, file := range documents {
		for _, b := range blocks(t, file) {
			if b.Lang == LangRun || b.Lang == LangHost {
				check(b.Where, b.Text)
			}
		}
		for _, s := range spans(t, file) {
			check(file, s)
		}
	}
	if len(checked) < 20 {
		t.Errorf("only %d different commands found: %v", len(checked), checked)
	}
	for path := range checked {
		helps(t, strings.Fields(path))
	}
}

// helps asks the real command line for the help of a command.
func helps(t *testing.T, path []string) {
	t.Helper()
	app := cli.App()
	var out bytes.Buffer
	app.Writer, app.ErrWriter = &out, &out
	if err := app.Run(slices.Concat([]string{"understudy"}, path, []string{"--help"})); err != nil || out.Len() == 0 {
		t.Errorf("understudy %s --help: %v, %q", strings.Join(path, " "), err, out.String())
	}
}

// Every command that there is stands in operations.md.
func TestCommandsAreDocumented(t *testing.T) {
	text := read(t, "operations.md")
	var walk func(prefix string, list []*urfave.Command)
	walk = func(prefix string, list []*urfave.Command) {
		for _, c := range list {
			name := prefix + " " + c.Name
			switch {
			case c.Hidden || c.Name == "help":
			case len(c.Subcommands) > 0:
				walk(name, c.Subcommands)
			case !strings.Contains(text, name):
				t.Errorf("operations.md does not mention %q", name)
			}
		}
	}
	walk("understudy", cli.App().Commands)
}

// invocations returns the arguments of each understudy command in shell text.
func invocations(text string) (list [][]string) {
	commands := [][]string{nil}
	for _, w := range words(strings.ReplaceAll(text, "\\\n", " ")) {
		if w == "\n" || slices.Contains([]string{";", "&&", "||", "|", "!", "if", "then", "until", "while", "do"}, w) {
			commands = append(commands, nil)
			continue
		}
		last := len(commands) - 1
		commands[last] = append(commands[last], w)
	}
	for _, c := range commands {
		for len(c) > 0 && (c[0] == "sudo" || strings.Contains(c[0], "=")) {
			c = c[1:]
		}
		if len(c) > 1 && c[0] == "understudy" {
			list = append(list, c[1:])
		}
	}
	return list
}

// words splits shell text at blanks outside of quotes. The end of a line is a
// word of its own; comments and redirections are left out.
func words(text string) (list []string) {
	var word strings.Builder
	var quote rune
	comment, begun := false, false
	flush := func() {
		if begun && !strings.HasPrefix(word.String(), ">") {
			list = append(list, word.String())
		}
		word.Reset()
		begun = false
	}
	for _, r := range text {
		switch {
		case comment && r != '\n':
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, begun = r, true
		case r == '#' && !begun:
			comment = true
		case r == '\n':
			flush()
			comment, list = false, append(list, "\n")
		case r == ';':
			flush()
			list = append(list, ";")
		case r == ' ' || r == '\t':
			flush()
		default:
			begun = true
			word.WriteRune(r)
		}
	}
	flush()
	return list
}

// resolve finds the command that args name, and checks every flag.
func resolve(app *urfave.App, args []string) (path []string, err error) {
	flags, subcommands := app.Flags, app.Commands
	for i := 0; i < len(args); i++ {
		word := args[i]
		if word == "..." {
			continue
		}
		if strings.HasPrefix(word, "-") {
			f := flagOf(flags, word)
			if f == nil {
				return path, fmt.Errorf("there is no flag %s", word)
			}
			if _, isBool := f.(*urfave.BoolFlag); !isBool && !strings.Contains(word, "=") {
				i++
			}
			continue
		}
		if len(subcommands) == 0 {
			continue // an argument
		}
		at := slices.IndexFunc(subcommands, func(c *urfave.Command) bool { return c.HasName(word) })
		if at < 0 {
			return path, fmt.Errorf("there is no command %q", word)
		}
		path = append(path, word)
		flags, subcommands = subcommands[at].Flags, subcommands[at].Subcommands
	}
	return path, nil
}

func flagOf(flags []urfave.Flag, word string) urfave.Flag {
	name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
	for _, f := range append(flags, urfave.HelpFlag, urfave.VersionFlag) {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}
