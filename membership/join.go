package membership

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/api"
	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/pgrepl"
)

// Join makes this host, which must be empty, a standby or a runner of the cluster
// that the manager at r.Contact belongs to. It may be repeated with the same token until
// it has ended well; after that it is refused with ErrMember.
func Join(ctx context.Context, h *node.Host, r Request, show Progress, progress func(string)) error {
	if err := cluster.CheckOptions(r.Options, true); err != nil {
		return err
	}
	id, secret, pin, err := certs.DecodeToken(r.Token)
	if err != nil {
		return err
	}
	contact, err := contactAddress(h, r.Contact)
	if err != nil {
		return err
	}
	free, err := alone(h)
	if err != nil {
		return err
	}
	defer free()
	if err := begin(ctx, h, "join", r); err != nil {
		return err
	}
	h.Record.Node.Options = r.Options
	j := joining{h: h, contact: contact, pin: pin, tokenID: id, secret: secret, progress: progress}
	return run(ctx, h, j.steps(), show)
}

// contactAddress takes an IP, or IP:port, of a member.
func contactAddress(h *node.Host, s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = s, strconv.Itoa(h.Config.APIPort())
	}
	if err := cluster.CheckAddress(host); err != nil {
		return "", fmt.Errorf("%w: ADDRESS: %w", ErrUsage, err)
	}
	return net.JoinHostPort(host, port), nil
}

type joining struct {
	h               *node.Host
	contact, pin    string
	tokenID, secret string
	progress        func(string)
}

// steps are those of the host's kind: a runner's PostgreSQL, if it has one, is not
// the cluster's.
func (j *joining) steps() []step {
	consul := step{"start Consul", func(ctx context.Context) error { return startConsul(ctx, j.h) }}
	daemons := step{"start the daemons", func(ctx context.Context) error { return startDaemons(ctx, j.h) }}
	reach := func(name string, there func(cluster.Report) bool) step {
		return step{name, func(ctx context.Context) error { return awaitState(ctx, j.h, there) }}
	}
	if j.h.Record.Node.Kind == cluster.Runner {
		return []step{
			{"check this host", j.check},
			{"ask to be let in", j.admission},
			consul,
			daemons,
			reach("take up the work of a runner", func(r cluster.Report) bool { return r.State == cluster.Executing }),
		}
	}
	return []step{
		{"check this host", j.check},
		{"ask to be let in", j.admission},
		{"configure PostgreSQL", j.postgres},
		consul,
		{"clone the database", j.clone},
		daemons,
		reach("follow the active node", func(r cluster.Report) bool {
			return r.Open || r.State == cluster.Standby && r.Streaming && r.Follows > 0
		}),
	}
}

// check refuses a host that has anything to lose.
func (j *joining) check(ctx context.Context) error {
	if err := preflight(ctx, j.h); err != nil {
		return err
	}
	if err := emptyFolders(j.h); err != nil || j.h.Record.Node.Kind == cluster.Runner {
		return err
	}
	pg, err := j.h.Postgres()
	if err != nil {
		return err
	}
	defer pg.Close()
	what, err := pg.InUse(ctx)
	if errors.Is(err, pgrepl.ErrNotRunning) {
		if err := j.h.Units().Start(ctx, j.h.Config.Postgres.Unit); err != nil {
			return err
		}
		err = await(ctx, func(ctx context.Context) (bool, string) {
			what, err = pg.InUse(ctx)
			return err == nil, fmt.Sprint(err)
		})
	}
	if err != nil {
		return err
	}
	if what != "" {
		return fmt.Errorf("%w: its PostgreSQL holds %s; joining would replace it. Save it, make the database new, and join again", ErrNotEmpty, what)
	}
	return nil
}

// admission shows the token, and keeps the certificate and what goes with it.
func (j *joining) admission(ctx context.Context) error {
	if err := j.clocks(ctx); err != nil {
		return err
	}
	d, rec := j.h.Certs, &j.h.Record
	csr, err := d.Request(rec.Node.Name, rec.Node.Address)
	if err != nil {
		return err
	}
	made, err := j.h.MakeSecrets()
	if err != nil {
		return err
	}
	secrets := map[string]string{}
	for holder, secret := range made {
		secrets[string(holder)] = secret
	}
	reply, err := node.Contact(j.pin).Join(ctx, j.contact, api.JoinRequest{TokenID: j.tokenID, Secret: j.secret, CSR: csr, Node: rec.Node, Secrets: secrets})
	if err != nil {
		return err
	}
	if err := d.Install(reply.CA, reply.Certificate); err != nil {
		return err
	}
	if err := d.InstallGossipKey(reply.GossipKey); err != nil {
		return err
	}
	if len(reply.CAKey) > 0 {
		if err := d.InstallCAKey(reply.CAKey); err != nil {
			return err
		}
	}
	rec.Node.Fingerprint, err = certs.Fingerprint(reply.Certificate)
	if err != nil {
		return err
	}
	rec.Info, rec.Members = reply.Info, nil
	for _, m := range reply.Members {
		rec.Members = append(rec.Members, m.Address)
		if m.Name == reply.Active {
			rec.Active = m
		}
	}
	return nil
}

// clockApart is how far the clocks of two members may be apart. Certificates are valid
// from an hour before they are made, and a clock that nobody sets goes on drifting.
const clockApart = 5 * time.Minute

// clocks refuses a host whose clock is far from that of the cluster: certificates are
// valid by it, and by it the sides of a partition are compared.
func (j *joining) clocks(ctx context.Context) error {
	theirs, took, err := node.Clock(j.pin).Clock(ctx, j.contact)
	if errors.Is(err, certs.ErrWrongPin) {
		return fmt.Errorf("%w; take a token that 'understudy cluster token create' makes on a member of the very cluster", err)
	}
	if err != nil {
		return err
	}
	ours := time.Now()
	apart := ours.Sub(theirs)
	switch sure := apart.Abs() - took; {
	case sure > clockApart:
		return fmt.Errorf("%w: %s; set it, as with 'timedatectl set-ntp true', or that of %s, and repeat the command", ErrClock, difference(apart, j.contact), j.contact)
	case sure > cluster.ClockSkew:
		j.progress(difference(apart, j.contact) + "; set one of them, as with 'timedatectl set-ntp true': after a partition the clocks tell which side was written last")
	}
	return nil
}

// ErrClock is the error of a join on a host whose clock is far from the cluster's.
var ErrClock = errors.New("the clocks differ")

// difference says by how much this host's clock is before or behind another's.
func difference(apart time.Duration, of string) string {
	where := "ahead of"
	if apart < 0 {
		where = "behind"
	}
	return fmt.Sprintf("the clock of this host is %s %s that of %s", apart.Abs().Round(time.Second), where, of)
}

func (j *joining) postgres(ctx context.Context) error {
	pg, err := j.h.Postgres()
	if err != nil {
		return err
	}
	defer pg.Close()
	unit := j.h.Config.Postgres.Unit
	if err := j.h.Units().Stop(ctx, unit); err != nil {
		return err
	}
	if err := guard(j.h); err != nil {
		return err
	}
	if err := pg.Prepare(ctx); err != nil {
		return err
	}
	return j.h.Units().Enable(ctx, unit)
}

// clone copies the database of whoever is active by now.
func (j *joining) clone(ctx context.Context) error {
	pg, err := j.h.Postgres()
	if err != nil {
		return err
	}
	defer pg.Close()
	if pg.Complete() {
		return nil
	}
	if err := j.h.Units().Stop(ctx, j.h.Config.Postgres.Unit); err != nil {
		return err
	}
	reg, err := j.h.Registry()
	if err != nil {
		return err
	}
	defer reg.Close()
	view, err := reg.View(ctx)
	if err != nil {
		return err
	}
	if err := node.SameCluster(j.h.Record, view); err != nil {
		return err
	}
	active := view.Upstream()
	if active.Name == "" || !view.Leader.Held {
		return errors.New("the cluster has no active node at the moment to clone from; repeat the command when it has")
	}
	if err := insist(ctx, time.Minute, func(ctx context.Context) error {
		return pg.Clone(ctx, j.h.Upstream(active), j.progress)
	}, slotBusy); err != nil {
		return err
	}
	return j.h.Units().Start(ctx, j.h.Config.Postgres.Unit)
}

// slotBusy says that the slot of this node is still held on the active by the
// clone of an attempt that was killed. It falls free when that is noticed there.
func slotBusy(err error) bool {
	return strings.Contains(err.Error(), "replication slot") && strings.Contains(err.Error(), "is active for PID")
}
