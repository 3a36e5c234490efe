package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/cli/lateflags"
	"github.com/understudy-ha/understudy/cluster"
)

// revision is one change of options that an operator has made.
type revision struct {
	ID      string                 `json:"revision"`
	At      time.Time              `json:"at"`
	By      string                 `json:"by"` // the host that the operator was on
	Changes []cluster.OptionChange `json:"changes"`
}

func optionsLogCommand() *urfave.Command {
	return &urfave.Command{
		Name: "log", Usage: "who changed which options, and when; the oldest first",
		UsageText: "understudy cluster options log [--json]\n\nexample: understudy cluster options log",
		Flags:     []urfave.Flag{jsonFlag()},
		Action:    onMember(listRevisions),
	}
}

func listRevisions(c *urfave.Context, m *member, _ []string) error {
	all, err := m.revisions(c)
	if err != nil {
		return err
	}
	var lines [][]string
	for _, r := range all {
		lines = append(lines, []string{r.ID, r.At.Local().Format(time.DateTime), r.By, r.String()})
	}
	return show(c, all, func(w io.Writer) { table(w, "REVISION AT BY CHANGES", lines) })
}

func rollbackCommand() *urfave.Command {
	return &urfave.Command{
		Name: "rollback", Usage: "undo one change of options, the last one unless another is named", ArgsUsage: "[REVISION]",
		UsageText: "understudy cluster options rollback [REVISION]\n\nREVISION is one of 'understudy cluster options log', or the beginning of it. An option that has been changed\nsince is not touched. What is undone is a change like any other, and can be undone.\n\nexample: understudy cluster options rollback",
		Action:    rollback,
	}
}

func rollback(c *urfave.Context) error {
	args, err := lateflags.Args(c)
	if err != nil || len(args) > 1 {
		return usagef("at most one REVISION is wanted; see '%s --help'", c.Command.HelpName)
	}
	id := "" // the last one
	if len(args) == 1 {
		id = args[0]
	}
	m, err := openManager(c)
	if err != nil {
		return err
	}
	defer m.close()
	all, err := m.revisions(c)
	if err != nil {
		return err
	}
	r, err := pickRevision(all, id)
	if err != nil {
		return err
	}
	view, err := m.view(c.Context)
	if err != nil {
		return err
	}
	back, err := cluster.Undo(view, r.Changes)
	if err != nil {
		return fmt.Errorf("revision %s cannot be undone: %w; set the options by hand", r.ID, err)
	}
	var changed []cluster.OptionChange
	for where, o := range back {
		done, err := m.change(c.Context, where, o)
		if err != nil {
			return err
		}
		changed = append(changed, done...)
	}
	for _, o := range changed {
		fmt.Fprintln(out(c), o)
	}
	return m.tellOptions(c.Context, changed)
}

// revisions are the changes of options among the events that are kept.
func (m *member) revisions(c *urfave.Context) ([]revision, error) {
	events, err := m.reg.Events(c.Context, time.Time{})
	if err != nil {
		return nil, err
	}
	all := []revision{}
	for _, e := range events {
		if e.Kind != cluster.EventOptions {
			continue
		}
		r := revision{ID: e.ID, At: e.At, By: e.Node}
		if err := json.Unmarshal(e.Data, &r.Changes); err != nil {
			fmt.Fprintf(c.App.ErrWriter, "event %s cannot be read, and is left out: %v\n", e.ID, err)
			continue
		}
		all = append(all, r)
	}
	return all, nil
}

// pickRevision finds the one whose ID begins so, or the last one.
func pickRevision(all []revision, id string) (revision, error) {
	var found []revision
	for _, r := range all {
		if strings.HasPrefix(r.ID, id) {
			found = append(found, r)
		}
	}
	switch {
	case len(all) == 0:
		return revision{}, fmt.Errorf("no option has been changed, as far as the events that are kept tell")
	case len(found) == 0:
		return revision{}, fmt.Errorf("there is no revision %s; 'understudy cluster options log' shows those there are", id)
	case id != "" && len(found) > 1:
		return revision{}, fmt.Errorf("%d revisions begin with %s; give more of it", len(found), id)
	}
	return found[len(found)-1], nil
}

func (r revision) String() string {
	var said []string
	for _, o := range r.Changes {
		said = append(said, o.String())
	}
	return strings.Join(said, "; ")
}
