package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	urfave "github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/cli/lateflags"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/registry"
)

func optionsFlag() urfave.Flag {
	return &urfave.StringSliceFlag{Name: "options",
		Usage: "settings: a YAML or JSON `FILE`, JSON text, or 'k=v;k2=v2'; may be repeated, the last one wins"}
}

// parseOptions reads every --options in its order. Nothing is checked yet.
func parseOptions(given []string) (cluster.Options, error) {
	all := cluster.Options{}
	for _, text := range given {
		o, err := parseOption(text)
		if err != nil {
			return nil, usagef("--options %q: %w", text, err)
		}
		maps.Copy(all, o)
	}
	return all, nil
}

func parseOption(text string) (cluster.Options, error) {
	if content, err := os.ReadFile(text); err == nil {
		return parseMap(content)
	} else if !errors.Is(err, fs.ErrNotExist) && !strings.ContainsAny(text, "={") {
		return nil, err
	}
	if strings.HasPrefix(strings.TrimSpace(text), "{") {
		return parseMap([]byte(text))
	}
	o := cluster.Options{}
	for pair := range strings.SplitSeq(text, ";") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		k, v, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, fmt.Errorf("%q is neither an existing file nor of the form name=value", pair)
		}
		o[strings.TrimSpace(k)] = strings.TrimSpace(v)
	}
	return o, nil
}

// parseMap reads YAML, and so JSON. Values are taken as they are written.
func parseMap(text []byte) (cluster.Options, error) {
	raw := map[string]any{}
	if err := yaml.Unmarshal(text, &raw); err != nil {
		return nil, err
	}
	o := cluster.Options{}
	for k, v := range raw {
		switch v := v.(type) {
		case nil:
			o[k] = ""
		case []any:
			var items []string
			for _, item := range v {
				items = append(items, fmt.Sprint(item))
			}
			o[k] = strings.Join(items, ",")
		case map[string]any:
			return nil, fmt.Errorf("option %s has a mapping as its value", k)
		default:
			o[k] = fmt.Sprint(v)
		}
	}
	return o, nil
}

// checked parses and checks; what is wrong is wrong usage.
func checked(given []string, perNode bool) (cluster.Options, error) {
	o, err := parseOptions(given)
	if err != nil {
		return nil, err
	}
	if err := cluster.CheckOptions(removable(o), perNode); err != nil {
		return nil, usageError{err}
	}
	return o, nil
}

// removable leaves out options with an empty value: it takes them away, so that
// the default is in force again. Their names must exist all the same.
func removable(o cluster.Options) cluster.Options {
	rest := maps.Clone(o)
	for name, value := range o {
		if value == "" {
			rest[name] = cluster.Options{}.Get(name)
		}
	}
	return rest
}

type optionRow struct {
	cluster.Option
	Value string `json:"value"`
	Set   bool   `json:"set"`
}

func optionsCommand() *urfave.Command {
	return &urfave.Command{
		Name: "options", Usage: "settings of the whole cluster",
		Subcommands: []*urfave.Command{
			{Name: "list", Usage: "every option: what is in force, its default, unit and effect",
				UsageText: "understudy cluster options list [--json]\n\nexample: understudy cluster options list",
				Flags:     []urfave.Flag{jsonFlag()}, Action: onMember(listOptions)},
			{Name: "set", Usage: "change options; an empty value takes one back to its default", ArgsUsage: "OPTIONS",
				UsageText: "understudy cluster options set O...\n\nexample: understudy cluster options set 'check_ttl_multiplier=3;check_fail_fast=false'",
				Action:    setOptions},
			optionsLogCommand(), rollbackCommand(),
		},
	}
}

func listOptions(c *urfave.Context, m *member, _ []string) error {
	view, err := m.view(c.Context)
	if err != nil {
		return err
	}
	var rows []optionRow
	var lines [][]string
	for _, o := range cluster.KnownOptions() {
		_, set := view.Info.Options[o.Name]
		row := optionRow{o, view.Info.Options.Get(o.Name), set}
		rows = append(rows, row)
		lines = append(lines, []string{row.Name, orDash(row.Value), orDash(row.Default), scope(o), row.Effect + " (" + row.Unit + ")"})
	}
	return show(c, rows, func(w io.Writer) { table(w, "OPTION VALUE DEFAULT SCOPE EFFECT", lines) })
}

func scope(o cluster.Option) string {
	if o.PerNode {
		return "node"
	}
	return "cluster"
}

func setOptions(c *urfave.Context) error {
	args, err := lateflags.Args(c)
	if err != nil {
		return usagef("%w; see '%s --help'", err, c.Command.HelpName)
	}
	if len(args) == 0 {
		return usagef("nothing to set; see '%s --help'", c.Command.HelpName)
	}
	o, err := checked(args, false)
	if err != nil {
		return err
	}
	m, err := openManager(c)
	if err != nil {
		return err
	}
	defer m.close()
	changed, err := m.change(c.Context, "", o)
	if err != nil {
		return err
	}
	if err := m.tellOptions(c.Context, changed); err != nil {
		return err
	}
	for name := range o {
		fmt.Fprintf(out(c), "%s is %s\n", name, orDash(cluster.Options{}.With(o).Get(name)))
	}
	return nil
}

// change sets options of a node, or of the cluster where node is empty, and returns
// what that has changed.
func (m *member) change(ctx context.Context, node string, o cluster.Options) (changed []cluster.OptionChange, err error) {
	err = registry.Patiently(ctx, func() error {
		if node == "" {
			before, after, err := m.reg.SetOptions(ctx, o)
			changed = cluster.Changed("", before, after)
			return err
		}
		return m.reg.UpdateNode(ctx, node, func(n *cluster.Node) error {
			before := n.Options
			n.Options = before.With(o)
			changed = cluster.Changed(node, before, n.Options)
			return nil
		})
	})
	return changed, err
}

// tellOptions writes to the history who changed which options.
func (m *member) tellOptions(ctx context.Context, changes []cluster.OptionChange) error {
	if len(changes) == 0 {
		return nil
	}
	return m.tell(ctx, cluster.EventOptions, revision{Changes: changes}.String(), changes)
}

// tell writes an event of what an operator has done on this host, which is done
// whether or not the event can be written.
func (m *member) tell(ctx context.Context, kind, message string, data any) error {
	by := m.host.Record.Node.Name
	e := cluster.Event{At: time.Now(), Node: by, Kind: kind, Message: message + ", by an operator on " + by}
	if data != nil {
		text, err := json.Marshal(data)
		if err != nil {
			return fmt.Errorf("encode event: %w", err)
		}
		e.Data = text
	}
	view, err := m.view(ctx)
	if err == nil {
		e.Epoch = view.NextMaster.Epoch
		err = registry.Patiently(ctx, func() (err error) {
			e, err = m.reg.AppendEvent(ctx, e) // has its ID from then on, and is added once
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("%s, but the event is not written: %w", message, err)
	}
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
