package membership

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/api"
	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/registry"
)

// Admitter lets new members in, on any manager.
type Admitter struct {
	Kind     cluster.Kind // of this node
	Certs    certs.Dir
	Registry *registry.Client
	Version  string
	Log      *slog.Logger
}

// Admit checks the token and the newcomer, signs its certificate and makes it a
// member. The same newcomer may ask again with the same token. Where the last one has
// just been let in, Consul's leader often changes.
func (a Admitter) Admit(ctx context.Context, r api.JoinRequest) (reply api.JoinReply, err error) {
	err = registry.Patiently(ctx, func() error {
		reply, err = a.admit(ctx, r)
		return err
	})
	return reply, err
}

func (a Admitter) admit(ctx context.Context, r api.JoinRequest) (api.JoinReply, error) {
	view, err := a.Registry.View(ctx)
	if err != nil {
		return api.JoinReply{}, err
	}
	if a.Kind == cluster.Runner {
		return api.JoinReply{}, api.Errorf(http.StatusConflict, api.CodeForbidden,
			"this member is a runner and cannot let others in; give the address of a manager: %s", strings.Join(managers(view), ", "))
	}
	if err := a.fits(view, r.Node); err != nil {
		return api.JoinReply{}, err
	}
	key, err := certs.RequestKey(r.CSR)
	if err != nil {
		return api.JoinReply{}, api.Errorf(http.StatusBadRequest, api.CodeBadRequest, "%v", err)
	}
	use := registry.TokenUse{Node: r.Node.Name, Kind: r.Node.Kind, Key: key}
	matches := func(hash string) bool { return certs.SecretMatches(hash, r.Secret) }
	if err := a.Registry.CheckToken(ctx, r.TokenID, matches, use, time.Now()); err != nil {
		return api.JoinReply{}, tokenError(err)
	}
	admission, err := a.admission(r)
	if err != nil {
		return api.JoinReply{}, err
	}
	if err := admission.UseToken(ctx, r.TokenID, matches, use, time.Now()); errors.Is(err, registry.ErrNameTaken) {
		return api.JoinReply{}, nameTaken(r.Node.Name)
	} else if err != nil {
		return api.JoinReply{}, tokenError(err)
	}
	reply, err := a.sign(view, r)
	if err != nil {
		return api.JoinReply{}, err
	}
	r.Node.Fingerprint, err = certs.Fingerprint(reply.Certificate)
	if err != nil {
		return api.JoinReply{}, err
	}
	if err := admission.AddNode(ctx, r.Node); errors.Is(err, registry.ErrNameTaken) {
		return api.JoinReply{}, nameTaken(r.Node.Name)
	} else if err != nil {
		return api.JoinReply{}, err
	}
	if err := admission.Grant(ctx, r.Node, secretsOf(r)); err != nil {
		return api.JoinReply{}, err
	}
	a.tell(ctx, view, r.Node)
	a.Log.Info("admitted", "newcomer", r.Node.Name, "address", r.Node.Address, "kind", string(r.Node.Kind))
	return reply, nil
}

// admission is the registry as somebody who may make newcomers members. No daemon may
// by itself: 'token create', which an operator runs, has made a token of Consul's for
// it, that only the join token and the CA's key together lead to.
func (a Admitter) admission(r api.JoinRequest) (*registry.Client, error) {
	secret, err := AdmissionSecret(a.Certs, r.TokenID, r.Secret)
	if err != nil {
		return nil, err
	}
	return a.Registry.As(secret)
}

// AdmissionSecret is the secret of the token of Consul's that goes with a join token.
func AdmissionSecret(d certs.Dir, id, secret string) (string, error) {
	raw, err := d.Derive("admission " + id + " " + secret)
	return registry.SecretOf(raw), err
}

func secretsOf(r api.JoinRequest) registry.Secrets {
	secrets := registry.Secrets{}
	for holder, secret := range r.Secrets {
		secrets[registry.Holder(holder)] = secret
	}
	return secrets
}

// tell writes the admission to the history. The newcomer is a member also where
// that fails.
func (a Admitter) tell(ctx context.Context, view cluster.View, n cluster.Node) {
	_, err := a.Registry.AppendEvent(ctx, cluster.Event{
		At: time.Now(), Node: n.Name, Epoch: view.NextMaster.Epoch, Kind: cluster.EventJoined,
		Message: n.Name + " (" + n.Address + ") is let in as a " + string(n.Kind),
	})
	if err != nil {
		a.Log.Warn("event not kept", "kind", cluster.EventJoined, "error", err)
	}
}

// fits refuses a newcomer that could not work with the members there are.
func (a Admitter) fits(view cluster.View, n cluster.Node) error {
	if err := cluster.CheckName(n.Name); err != nil {
		return api.Errorf(http.StatusBadRequest, api.CodeBadRequest, "%v", err)
	}
	if err := cluster.CheckAddress(n.Address); err != nil {
		return api.Errorf(http.StatusBadRequest, api.CodeBadRequest, "%v", err)
	}
	if n.Kind != cluster.Manager && n.Kind != cluster.Runner {
		return api.Errorf(http.StatusBadRequest, api.CodeBadRequest, "%q is no kind of member", n.Kind)
	}
	if n.Version != a.Version {
		return api.Errorf(http.StatusConflict, api.CodeIncompatible,
			"the cluster runs understudy %s, this host %s; install the same version", a.Version, n.Version)
	}
	active := view.Nodes[view.NextMaster.Node]
	if n.Kind == cluster.Manager && n.PostgresVer != active.PostgresVer {
		return api.Errorf(http.StatusConflict, api.CodeIncompatible,
			"the cluster runs PostgreSQL %d, this host %d; install the same major version", active.PostgresVer, n.PostgresVer)
	}
	for _, m := range view.Nodes {
		if m.Name != n.Name && m.Address == n.Address {
			return api.Errorf(http.StatusConflict, api.CodeNameTaken, "the address %s is in use by the member %s", n.Address, m.Name)
		}
		if m.Name == n.Name && m.Address != n.Address {
			return nameTaken(n.Name)
		}
	}
	return nil
}

// managers lists the addresses of those who let others in.
func managers(view cluster.View) (addresses []string) {
	for _, name := range view.Managers() {
		addresses = append(addresses, view.Nodes[name].Address)
	}
	return addresses
}

func nameTaken(name string) error {
	return api.Errorf(http.StatusConflict, api.CodeNameTaken, "the name %s is in use by another member; give another with --cluster-node-name", name)
}

// sign gathers what the newcomer gets. A runner gets no CA key.
func (a Admitter) sign(view cluster.View, r api.JoinRequest) (reply api.JoinReply, err error) {
	if reply.Certificate, err = a.Certs.Sign(r.CSR, r.Node.Name, r.Node.Address, r.Node.Kind); err != nil {
		return reply, api.Errorf(http.StatusBadRequest, api.CodeBadRequest, "%v", err)
	}
	if reply.CA, err = a.Certs.CA(); err != nil {
		return reply, err
	}
	if reply.GossipKey, err = a.Certs.GossipKey(); err != nil {
		return reply, err
	}
	if r.Node.Kind == cluster.Manager {
		if reply.CAKey, err = a.Certs.CAKey(); err != nil {
			return reply, err
		}
	}
	reply.Info, reply.Active = *view.Info, view.Leader.Node
	for _, m := range view.Nodes {
		if m.Name != r.Node.Name {
			reply.Members = append(reply.Members, m)
		}
	}
	return reply, nil
}

// tokenError says in the API's words why a token does not let anybody in.
func tokenError(err error) error {
	for _, known := range []error{registry.ErrTokenUnknown, registry.ErrTokenExpired, registry.ErrTokenUsed, registry.ErrTokenOther} {
		if errors.Is(err, known) {
			return api.Errorf(http.StatusForbidden, api.CodeToken, "%v; 'understudy cluster token create' on a member makes a new one", err)
		}
	}
	if errors.Is(err, registry.ErrRefused) {
		return api.Errorf(http.StatusForbidden, api.CodeToken,
			"the join token lets nobody in any more: %v; where the host is a member already, 'understudy cluster nodes remove' it first, and 'understudy cluster token create' makes a new token", err)
	}
	return err
}
