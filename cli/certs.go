package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/membership"
	"github.com/understudy-ha/understudy/node"
)

func certsCommand() *urfave.Command {
	return &urfave.Command{
		Name: "certs", Usage: "the certificates of the members",
		Subcommands: []*urfave.Command{
			{Name: "show", Usage: "until when the certificate of each member, and the CA's, is valid", Flags: []urfave.Flag{jsonFlag()}, Action: onMember(showCerts),
				UsageText: "understudy certs show [--json]\n\nexample: understudy certs show"},
			{Name: "rotate", Usage: "give members new certificates, without a restart or a failover", ArgsUsage: "[NAME...]",
				Flags: []urfave.Flag{
					&urfave.BoolFlag{Name: "ca", Usage: "the CA too: all members trust both, then get certificates of the new one, then trust that alone"},
					&urfave.BoolFlag{Name: "gossip", Usage: "replace the key of Consul's gossip instead, which all members share"},
					&urfave.BoolFlag{Name: "offline", Usage: "of this host alone, without asking anybody: where certificates have expired"},
					timeoutFlag(120 * time.Second)},
				Action: rotateCerts,
				UsageText: "understudy certs rotate [options] [NAME...]\n\nWithout a name, of every member, one after the other. Members renew theirs by themselves when two thirds of its life are over.\n\n" +
					"With --ca the cluster gets a new CA first. Every member must answer; join tokens that were made before are good no more.\n\n" +
					"example: understudy certs rotate alpha\n         understudy certs rotate --ca\n         understudy certs rotate --gossip\n         sudo understudy certs rotate --offline"},
		},
	}
}

// certRow is one line of certs show, and one object of its JSON.
type certRow struct {
	Node  string      `json:"node"` // empty: the CA, and then the other one while it is replaced
	Valid *certs.Info `json:"certificate"`
	Error string      `json:"error,omitempty"`
}

func showCerts(c *urfave.Context, m *member, _ []string) error {
	has, err := m.host.Certs.Info()
	if err != nil {
		return err
	}
	var rows []certRow
	for _, ca := range has.CAs {
		rows = append(rows, certRow{Valid: &ca})
	}
	view, err := m.view(c.Context)
	if err != nil { // as where all have expired
		rows = append(rows, certRow{Node: m.host.Record.Node.Name, Valid: &has.Own})
	}
	for _, name := range slices.Sorted(maps.Keys(view.Nodes)) {
		row := certRow{Node: name}
		ctx, cancel := context.WithTimeout(c.Context, askWithin)
		var told certs.Trusted
		if err := m.peers.Certificates(ctx, view.Nodes[name], &told); err != nil {
			row.Error = err.Error()
		} else {
			row.Valid = &told.Own
		}
		cancel()
		rows = append(rows, row)
	}
	if err := show(c, rows, func(w io.Writer) { printCerts(w, rows, time.Now()) }); err != nil {
		return err
	}
	if err != nil {
		fmt.Fprintf(c.App.ErrWriter, "the other members are not known: %v\n", err)
	}
	return nil
}

// askWithin bounds the question to one member.
const askWithin = 5 * time.Second

func printCerts(w io.Writer, rows []certRow, now time.Time) {
	var lines [][]string
	for i, r := range rows {
		line := []string{orDash(r.Node), "-", "-", "-", "-"}
		if r.Node == "" {
			line[0] = "(CA)"
			if i > 0 { // while it is replaced; the first one signs
				line[0] = "(other CA)"
			}
		}
		if v := r.Valid; v != nil {
			renewed := v.NotBefore.Add(v.NotAfter.Sub(v.NotBefore) * 2 / 3).Format(time.DateOnly)
			if r.Node == "" {
				renewed = "-"
			}
			left := "EXPIRED"
			if now.Before(v.NotAfter) {
				left = fmt.Sprintf("%d days", int(v.NotAfter.Sub(now).Hours()/24))
			}
			line = []string{line[0], v.NotAfter.Format(time.DateOnly), left, renewed, v.Fingerprint[:16]}
		}
		lines = append(lines, line)
	}
	table(w, "NODE VALID_UNTIL LEFT RENEWED_FROM FINGERPRINT", lines)
	for _, r := range rows {
		if r.Error != "" {
			fmt.Fprintf(w, "\n%s does not answer: %s\n", r.Node, r.Error)
		}
	}
}

// warnOfCertificate says why nobody believes this host, where that is so: what a command
// runs into by itself does not tell.
func warnOfCertificate(w io.Writer, h *node.Host, now time.Time) {
	has, err := h.Certs.Info()
	if err != nil {
		return // whatever needs it has said so
	}
	own := has.Own
	name := h.Record.Node.Name
	switch {
	case now.Before(own.NotBefore):
		fmt.Fprintf(w, "The certificate of %s is not valid before %s UTC: is the clock of this host right?\n", name, own.NotBefore.UTC().Format(time.DateTime))
	case now.Before(own.NotAfter):
	case h.Record.Node.Kind == cluster.Runner:
		fmt.Fprintf(w, "The certificate of %s expired on %s: remove it with 'understudy cluster nodes remove %s' on another member, and let it join again.\n",
			name, own.NotAfter.Format(time.DateOnly), name)
	default:
		fmt.Fprintf(w, "The certificate of %s expired on %s: 'sudo understudy certs rotate --offline' makes a new one.\n", name, own.NotAfter.Format(time.DateOnly))
	}
}

func rotateCerts(c *urfave.Context) error {
	ctx, cancel := withTimeout(c)
	defer cancel()
	if c.Bool("gossip") {
		if c.Args().Present() || c.Bool("offline") || c.Bool("ca") {
			return usagef("--gossip is of all members and of that key alone, and takes neither a name nor --offline nor --ca")
		}
		return rotateGossip(ctx, c)
	}
	if c.Bool("ca") && (c.Bool("offline") || c.Args().Present()) {
		return usagef("--ca is of all members, and takes neither a name nor --offline")
	}
	if c.Bool("offline") {
		if c.Args().Present() {
			return usagef("--offline is of this host alone, and takes no name")
		}
		return revive(ctx, c)
	}
	m, err := openMember(c)
	if err != nil {
		return err
	}
	defer m.close()
	if c.Bool("ca") {
		say := func(line string) { fmt.Fprintln(out(c), line) }
		if err := (membership.Succession{Host: m.host, Peers: m.peers, View: m.view, Say: say}).Run(ctx); err != nil {
			return err
		}
		say("The cluster has a new CA. Join tokens that were made before are good no more.")
		return nil
	}
	view, err := m.view(ctx)
	if err != nil {
		return fmt.Errorf("%w; where certificates have expired, 'understudy certs rotate --offline' on each host", err)
	}
	names := c.Args().Slice()
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(view.Nodes))
	}
	for _, name := range names {
		if _, member := view.Nodes[name]; !member {
			return fmt.Errorf("%s is not a member of the cluster", name)
		}
	}
	var failed []error
	for _, name := range names {
		var now certs.Info
		if err := m.peers.Renew(ctx, view.Nodes[name], &now); err != nil {
			failed = append(failed, err)
			continue
		}
		fmt.Fprintf(out(c), "%s has a new certificate, valid until %s.\n", name, now.NotAfter.Format(time.DateOnly))
	}
	return errors.Join(failed...)
}

// rotateGossip replaces the key of Consul's gossip on all members.
func rotateGossip(ctx context.Context, c *urfave.Context) error {
	m, err := openManager(c)
	if err != nil {
		return err
	}
	defer m.close()
	view, err := m.view(ctx)
	if err != nil {
		return err
	}
	if err := (membership.GossipRotation{Registry: m.reg, Peers: m.peers}).Rotate(ctx, view, newProgress(c).step); err != nil {
		return err
	}
	says := "Consul's gossip has a new key"
	if err := m.tell(ctx, cluster.EventCertificate, says, nil); err != nil {
		return err
	}
	fmt.Fprintf(out(c), "%s, on %d members.\n", says, len(view.Nodes))
	return nil
}

// revive renews the certificate of this host without a word to anybody.
func revive(ctx context.Context, c *urfave.Context) error {
	h, err := node.OpenQuiet(c.String("root"))
	if err != nil {
		return err
	}
	switch {
	case !h.Record.Member:
		return node.ErrNotMember
	case h.Record.Node.Kind == cluster.Runner:
		return fmt.Errorf("%s is a runner, and does not hold the key of the CA: remove it, and let it join again", h.Record.Node.Name)
	}
	pg, err := h.Postgres()
	if err != nil {
		return err
	}
	defer pg.Close()
	now, err := membership.Renewal{Host: h, Uses: []func(context.Context) error{pg.InstallCertificates, membership.RestartConsul(h)}}.Renew(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out(c), "%s has a new certificate, valid until %s. Do the same on the other managers.\n", h.Record.Node.Name, now.NotAfter.Format(time.DateOnly))
	return nil
}
