package membership

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/registry"
)

// Start makes this host, with the data that it has, the first and active member
// of a new cluster. It may be repeated until it has ended well; after that it is
// refused with ErrMember.
func Start(ctx context.Context, h *node.Host, r Request, show Progress) error {
	if err := cluster.CheckOptions(r.Options, false); err != nil {
		return err
	}
	free, err := alone(h)
	if err != nil {
		return err
	}
	defer free()
	if err := begin(ctx, h, "start", r); err != nil {
		return err
	}
	s := starting{h}
	return run(ctx, h, []step{
		{"check this host", s.check},
		{"make the cluster's CA and this node's certificate", s.authority},
		{"make PostgreSQL ready to replicate", s.postgres},
		{"start Consul", func(ctx context.Context) error { return startConsul(ctx, h) }},
		{"record the cluster", func(ctx context.Context) error { return s.record(ctx, r.Options) }},
		{"start the daemons", func(ctx context.Context) error { return startDaemons(ctx, h) }},
		{"become active", func(ctx context.Context) error {
			return awaitState(ctx, h, func(r cluster.Report) bool { return r.Open })
		}},
	}, show)
}

type starting struct{ h *node.Host }

func (s starting) check(ctx context.Context) error {
	if err := preflight(ctx, s.h); err != nil {
		return err
	}
	if s.h.Record.Info.ID == "" {
		id := make([]byte, 8)
		rand.Read(id)
		s.h.Record.Info = cluster.Info{ID: hex.EncodeToString(id), Created: time.Now().UTC().Truncate(time.Second), Schema: cluster.Schema}
	}
	return nil
}

func (s starting) authority(context.Context) error {
	d, n := s.h.Certs, s.h.Record.Node
	if err := d.NewCA(s.h.Record.Info.ID); err != nil {
		return err
	}
	if err := d.NewGossipKey(); err != nil {
		return err
	}
	if _, err := s.h.MakeSecrets(); err != nil {
		return err
	}
	csr, err := d.Request(n.Name, n.Address)
	if err != nil {
		return err
	}
	cert, err := d.Sign(csr, n.Name, n.Address, n.Kind)
	if err != nil {
		return err
	}
	ca, err := d.CA()
	if err != nil {
		return err
	}
	s.h.Record.Node.Fingerprint, err = certs.Fingerprint(cert)
	if err != nil {
		return err
	}
	return d.Install(ca, cert)
}

// postgres turns the running server into one that boots as a standby and waits
// to be promoted: from here on only the cluster decides who accepts writes.
func (s starting) postgres(ctx context.Context) error {
	pg, err := s.h.Postgres()
	if err != nil {
		return err
	}
	defer pg.Close()
	control, err := pg.ControlData(ctx)
	if err != nil {
		return err
	}
	s.h.Record.Info.SystemID = control.SystemID
	units, unit := s.h.Units(), s.h.Config.Postgres.Unit
	if err := units.Stop(ctx, unit); err != nil {
		return err
	}
	if err := guard(s.h); err != nil {
		return err
	}
	// In this order, because a server that is prepared boots as a standby, in
	// which no role can be made any more.
	if !pg.Complete() {
		if err := insist(ctx, 10*time.Second, pg.EnsureRoles, dataDirBusy); err != nil {
			return err
		}
		if err := pg.MarkComplete(ctx); err != nil {
			return err
		}
	}
	if err := pg.Prepare(ctx); err != nil {
		return err
	}
	if err := units.Enable(ctx, unit); err != nil {
		return err
	}
	return units.Start(ctx, unit)
}

// dataDirBusy says that the single-user server of an attempt that was killed has
// not ended yet.
func dataDirBusy(err error) bool { return strings.Contains(err.Error(), "postmaster.pid") }

func (s starting) record(ctx context.Context, o cluster.Options) error {
	reg, err := s.h.Registry()
	if err != nil {
		return err
	}
	defer reg.Close()
	secrets, err := s.h.MakeSecrets()
	if err != nil {
		return err
	}
	if err := reg.Grant(ctx, s.h.Record.Node, secrets); err != nil {
		return err
	}
	if err := reg.EnsureAutopilot(ctx); err != nil {
		return err
	}
	info := s.h.Record.Info
	info.Options = o
	if err := reg.CreateCluster(ctx, info); err != nil && !errors.Is(err, registry.ErrClusterExists) {
		return err
	}
	view, err := reg.View(ctx)
	if err != nil {
		return err
	}
	if view.Info.ID != info.ID {
		return fmt.Errorf("Consul on this host holds another cluster, %s; is its data folder a leftover?", view.Info.ID)
	}
	s.h.Record.Info = *view.Info
	if err := reg.AddNode(ctx, s.h.Record.Node); err != nil {
		return err
	}
	if view.NextMaster.Epoch > 0 {
		return nil
	}
	first := cluster.Assignment{Node: s.h.Record.Node.Name, Epoch: 1, Reason: "the cluster is started on it", By: "cluster start", At: time.Now().UTC()}
	_, err = reg.SetNextMaster(ctx, view, first)
	return err
}
