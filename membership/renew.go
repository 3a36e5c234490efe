package membership

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/understudy-ha/understudy/api"
	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/registry"
)

// Certificates are what a node tells of its own.
type Certificates struct {
	Own certs.Info `json:"own"`
	CA  certs.Info `json:"ca"`
}

// Renewal replaces the certificate of a node, while it and everything that uses it go
// on running. The node's key stays.
type Renewal struct {
	Host     *node.Host
	Registry *registry.Client
	Peers    *api.Client
	View     func() cluster.View
	// Postgres has PostgreSQL use the certificate; nil on a runner.
	Postgres func(context.Context) error
}

// Renew has a new certificate signed, by this node itself where it holds the CA's key,
// and puts it to use: in the API and in the connections of all daemons at once, in
// PostgreSQL and Consul by a reload. file-sync sees it by itself. It may be repeated.
func (r Renewal) Renew(ctx context.Context) (certs.Info, error) {
	n, d := r.Host.Record.Node, r.Host.Certs
	cert, err := r.signed(ctx)
	if err != nil {
		return certs.Info{}, fmt.Errorf("renew the certificate of %s: %w", n.Name, err)
	}
	ca, err := d.CA()
	if err == nil {
		err = d.Install(ca, cert)
	}
	if err != nil {
		return certs.Info{}, fmt.Errorf("renew the certificate of %s: %w", n.Name, err)
	}
	own, _, err := d.Info()
	if err == nil {
		err = r.Use(ctx)
	}
	return own, err
}

// Use has everything on this node that does not look at the certificate's file by
// itself take the certificate that is there. It may be repeated.
func (r Renewal) Use(ctx context.Context) error {
	own, _, err := r.Host.Certs.Info()
	if err != nil {
		return err
	}
	var failed []error
	if r.Postgres != nil {
		failed = append(failed, r.Postgres(ctx))
	}
	n := r.Host.Record.Node.Name
	failed = append(failed, r.reloadConsul(ctx), r.Registry.UpdateNode(ctx, n, func(n *cluster.Node) error {
		n.Fingerprint = own.Fingerprint
		return nil
	}))
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("the new certificate of %s is there, and not in use everywhere: %w; repeat the command", n, err)
	}
	return nil
}

// reloadConsul has the agent read its certificate again. One whose certificate has
// expired is believed by nobody, so that it is started again instead.
func (r Renewal) reloadConsul(ctx context.Context) error {
	err := r.Registry.ReloadAgent(ctx)
	var refused *tls.CertificateVerificationError
	if !errors.As(err, &refused) {
		return err
	}
	units := r.Host.Units()
	return errors.Join(units.Stop(ctx, consulUnit), units.Start(ctx, consulUnit))
}

// signed asks this node, or the managers one after the other, for the certificate.
func (r Renewal) signed(ctx context.Context) ([]byte, error) {
	n := r.Host.Record.Node
	csr, err := r.Host.Certs.Request(n.Name, n.Address)
	if err != nil {
		return nil, err
	}
	if n.Kind == cluster.Manager {
		return r.Host.Certs.Sign(csr, n.Name, n.Address, n.Kind)
	}
	view := r.View()
	failed := []error{errors.New("no manager has signed it")}
	for _, name := range view.Managers() {
		cert, err := r.Peers.Sign(ctx, view.Nodes[name], csr)
		if err == nil {
			return cert, nil
		}
		failed = append(failed, err)
	}
	return nil, errors.Join(failed...)
}

// Revive is Renew for a manager whose certificate has expired, so that nobody talks to
// it any more. It is run as root on that very host, and asks nobody: the CA's key is
// there. Consul is restarted, PostgreSQL is not.
func Revive(ctx context.Context, h *node.Host) (certs.Info, error) {
	n, d := h.Record.Node, h.Certs
	if n.Kind == cluster.Runner {
		return certs.Info{}, errors.New("a runner does not hold the key of the CA: remove it, and let it join again")
	}
	cert, err := Renewal{Host: h}.signed(ctx)
	if err != nil {
		return certs.Info{}, err
	}
	ca, err := d.CA()
	if err == nil {
		err = d.Install(ca, cert)
	}
	if err != nil {
		return certs.Info{}, err
	}
	pg, err := h.Postgres()
	if err != nil {
		return certs.Info{}, err
	}
	defer pg.Close()
	units := h.Units()
	if err := errors.Join(pg.InstallCertificates(ctx), units.Stop(ctx, consulUnit), units.Start(ctx, consulUnit)); err != nil {
		return certs.Info{}, err
	}
	own, _, err := d.Info()
	return own, err
}
