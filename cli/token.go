package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/membership"
	"github.com/understudy-ha/understudy/registry"
)

func tokenCommand() *urfave.Command {
	return &urfave.Command{
		Name: "token", Usage: "join tokens: each lets one host in, once",
		Subcommands: []*urfave.Command{
			{Name: "create", Usage: "make a token and print it",
				UsageText: "understudy cluster token create [--ttl 30m] [--node NAME] [--kind KIND] [--json]\n\nexample: understudy cluster token create --node beta\n         understudy cluster token create --kind runner",
				Flags: []urfave.Flag{jsonFlag(),
					&urfave.DurationFlag{Name: "ttl", Value: 30 * time.Minute, Usage: "it must be used within this `TIME`"},
					&urfave.StringFlag{Name: "node", Usage: "only for the host that joins as `NAME`"},
					&urfave.StringFlag{Name: "kind", Value: string(cluster.Manager), Usage: "only for this `KIND` of member: manager or runner"}},
				Action: createToken},
			{Name: "list", Usage: "the tokens there are, without their secrets", Flags: []urfave.Flag{jsonFlag()}, Action: onManager(listTokens),
				UsageText: "understudy cluster token list [--json]\n\nexample: understudy cluster token list"},
			{Name: "revoke", Usage: "make a token useless", ArgsUsage: "ID", Action: onManager(revokeToken, "ID"),
				UsageText: "understudy cluster token revoke ID\n\nexample: understudy cluster token revoke 4be1c2d09a3f5d77"},
		},
	}
}

func createToken(c *urfave.Context) error {
	if _, err := exactly(c); err != nil {
		return err
	}
	if name := c.String("node"); name != "" {
		if err := cluster.CheckName(name); err != nil {
			return usagef("--node: %w", err)
		}
	}
	kind := cluster.Kind(c.String("kind"))
	if kind != cluster.Manager && kind != cluster.Runner {
		return usagef("--kind %q is neither manager nor runner", kind)
	}
	if c.Duration("ttl") <= 0 {
		return usagef("--ttl must be positive")
	}
	m, err := openManager(c)
	if err != nil {
		return err
	}
	defer m.close()
	pin, err := m.host.Certs.Pin()
	if err != nil {
		return err
	}
	id, secret := certs.NewSecret()
	word, err := certs.EncodeToken(id, secret, pin)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	t := registry.Token{ID: id, SecretHash: certs.HashSecret(secret), Node: c.String("node"), Kind: kind,
		Created: now, Expires: now.Add(c.Duration("ttl"))}
	admission, err := membership.AdmissionSecret(m.host.Certs, id, secret)
	if err != nil {
		return err
	}
	if err := registry.Patiently(c.Context, func() error {
		if err := m.reg.CreateToken(c.Context, t); err != nil {
			return err
		}
		return m.reg.CreateAdmission(c.Context, id, admission, c.Duration("ttl"))
	}); err != nil {
		return err
	}
	made := struct {
		ID      string    `json:"id"`
		Token   string    `json:"token"`
		Expires time.Time `json:"expires"`
		Address string    `json:"address"`
	}{id, word, t.Expires, m.host.Record.Node.Address}
	return show(c, made, func(w io.Writer) { fmt.Fprintln(w, word) })
}

// tokenRow is a token without its secret.
type tokenRow struct {
	ID      string       `json:"id"`
	Node    string       `json:"node,omitempty"`
	Kind    cluster.Kind `json:"kind,omitempty"`
	Expires time.Time    `json:"expires"`
	State   string       `json:"state"` // open, expired, or used by NAME
}

func listTokens(c *urfave.Context, m *member, _ []string) error {
	tokens, err := m.reg.ListTokens(c.Context)
	if err != nil {
		return err
	}
	rows, lines := []tokenRow{}, [][]string{}
	for _, t := range tokens {
		r := tokenRow{t.ID, t.Node, t.Kind, t.Expires, "open"}
		switch {
		case t.Used != nil:
			r.State = "used by " + t.Used.Node
		case time.Now().After(t.Expires):
			r.State = "expired"
		}
		rows = append(rows, r)
		lines = append(lines, []string{r.ID, orDash(r.Node), orDash(string(r.Kind)), r.Expires.Local().Format(time.DateTime), r.State})
	}
	return show(c, rows, func(w io.Writer) { table(w, "ID NODE KIND EXPIRES STATE", lines) })
}

func revokeToken(c *urfave.Context, m *member, args []string) error {
	if err := m.reg.RevokeToken(c.Context, args[0]); err != nil {
		return err
	}
	fmt.Fprintf(out(c), "token %s is revoked\n", args[0])
	return nil
}

// awaitActive waits until target is open to clients.
func (m *member) awaitActive(ctx context.Context, target string) error {
	for {
		view, err := m.view(ctx)
		if err == nil && view.Leader.Held && view.Leader.Ready && view.Leader.Node == target {
			return nil
		}
		if err == nil && view.NextMaster.Node != target {
			return fmt.Errorf("%s is to be active instead of %s: %s", view.NextMaster.Node, target, view.NextMaster.Reason)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s was named, but is not active yet: %w; see 'understudy cluster nodes list'", target, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
