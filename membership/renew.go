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

// Renewal replaces the certificate of a node, while it and everything that uses it go
// on running. The node's key stays. The API, the connections of the daemons and
// file-sync look at the certificate's file by themselves.
type Renewal struct {
	Host *node.Host
	// Sign has a certificate signed by another node; nil where this one is a manager,
	// which holds the CA's key.
	Sign func(ctx context.Context, csr []byte) ([]byte, error)
	// Uses have what does not look by itself take the new certificate. They may be
	// repeated.
	Uses []func(context.Context) error
}

// Renew has a new certificate signed and puts it to use. It may be repeated.
func (r Renewal) Renew(ctx context.Context) (certs.Info, error) {
	if err := r.install(ctx); err != nil {
		return certs.Info{}, fmt.Errorf("renew the certificate of %s: %w", r.Host.Record.Node.Name, err)
	}
	has, err := r.Host.Certs.Info()
	if err == nil {
		err = r.Use(ctx)
	}
	return has.Own, err
}

func (r Renewal) install(ctx context.Context) error {
	n, d := r.Host.Record.Node, r.Host.Certs
	csr, err := d.Request(n.Name, n.Address)
	if err != nil {
		return err
	}
	var cert []byte
	if r.Sign != nil {
		cert, err = r.Sign(ctx, csr)
	} else {
		cert, err = d.Sign(csr, n.Name, n.Address, n.Kind)
	}
	if err != nil {
		return err
	}
	ca, err := d.CA()
	if err != nil {
		return err
	}
	return d.Install(ca, cert)
}

// Use puts the certificate that is there to use.
func (r Renewal) Use(ctx context.Context) error {
	var failed []error
	for _, use := range r.Uses {
		failed = append(failed, use(ctx))
	}
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("what is new of the certificates of %s is there, and not in use everywhere: %w; repeat the command", r.Host.Record.Node.Name, err)
	}
	return nil
}

// SignedByManagers asks the managers of a view, one after the other.
func SignedByManagers(peers *api.Client, view func() cluster.View) func(context.Context, []byte) ([]byte, error) {
	return func(ctx context.Context, csr []byte) ([]byte, error) {
		v, failed := view(), []error{errors.New("no manager has signed it")}
		for _, name := range v.Managers() {
			cert, err := peers.Sign(ctx, v.Nodes[name], csr)
			if err == nil {
				return cert, nil
			}
			failed = append(failed, err)
		}
		return nil, errors.Join(failed...)
	}
}

// ReloadConsul has the agent read its certificate again. One whose certificate has
// expired is believed by nobody, so that it is started again instead.
func ReloadConsul(h *node.Host, reg *registry.Client) func(context.Context) error {
	return func(ctx context.Context) error {
		err := reg.ReloadAgent(ctx)
		var refused *tls.CertificateVerificationError
		if errors.As(err, &refused) {
			return RestartConsul(h)(ctx)
		}
		return err
	}
}

// RestartConsul stops the agent and starts it.
func RestartConsul(h *node.Host) func(context.Context) error {
	return func(ctx context.Context) error {
		units := h.Units()
		return errors.Join(units.Stop(ctx, consulUnit), units.Start(ctx, consulUnit))
	}
}

// RecordCertificate tells the cluster of the certificate that this node has.
func RecordCertificate(h *node.Host, reg *registry.Client) func(context.Context) error {
	return func(ctx context.Context) error {
		has, err := h.Certs.Info()
		if err != nil {
			return err
		}
		return reg.UpdateNode(ctx, h.Record.Node.Name, func(n *cluster.Node) error {
			n.Fingerprint = has.Own.Fingerprint
			return nil
		})
	}
}
