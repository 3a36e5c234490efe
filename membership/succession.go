package membership

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/understudy-ha/understudy/api"
	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/node"
)

// Succession gives a cluster a new CA, while everything goes on running: all members
// learn to trust it beside the old one, then it signs, then each member gets a
// certificate of it, then the old one is trusted no more. At every moment each member
// trusts the CA of every certificate that is in use.
type Succession struct {
	Host  *node.Host // a manager
	Peers Successors
	View  func(context.Context) (cluster.View, error)
	Say   func(string)
}

// Successors are the members, this one among them.
type Successors interface {
	// Certificates asks a member what it has; out is a *certs.Trusted.
	Certificates(ctx context.Context, n cluster.Node, out any) error
	Trust(ctx context.Context, n cluster.Node, cas, key []byte) error
	// Renew has a member renew its certificate; out is a *certs.Info.
	Renew(ctx context.Context, n cluster.Node, out any) error
}

var _ Successors = (*api.Client)(nil)

// Run may be repeated until it has ended well, on the same manager: it goes on where it
// was. It changes nothing while a member does not answer.
func (s Succession) Run(ctx context.Context) error {
	if n := s.Host.Record.Node; n.Kind == cluster.Runner {
		return fmt.Errorf("%s is a runner, and does not hold the key of the CA: use a manager", n.Name)
	}
	_, has, err := s.ask(ctx)
	if err != nil {
		return err
	}
	ca, err := s.Host.Certs.Succession(s.Host.Record.Info.ID)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(has)) {
		if !ca.Begun && len(has[name].CAs) > 1 {
			return fmt.Errorf("a rotation of the CA was begun from another manager, which %s knows of and this one does not; repeat the command on %s", name, name)
		}
	}
	both, next := slices.Concat(ca.Old, ca.New), slices.Concat(ca.New, ca.Old)
	if err := s.all(ctx, "trusts both CAs", func(n cluster.Node) error { return s.trust(ctx, n, both, ca.Key) }); err != nil {
		return err
	}
	if err := s.all(ctx, "has the new CA sign", func(n cluster.Node) error { return s.trust(ctx, n, next, ca.Key) }); err != nil {
		return err
	}
	if err := s.all(ctx, "has a new certificate", func(n cluster.Node) error {
		var now certs.Info
		return s.Peers.Renew(ctx, n, &now)
	}); err != nil {
		return err
	}
	return s.end(ctx, ca, next)
}

// end has every member trust the new CA alone: this one last, so that an attempt that
// broke off is known of. Who was let in meanwhile may have a certificate of the old one,
// or trust both.
func (s Succession) end(ctx context.Context, ca certs.Succession, next []byte) error {
	signer, err := certs.Fingerprint(ca.New)
	if err != nil {
		return err
	}
	for {
		view, has, err := s.ask(ctx)
		if err != nil {
			return err
		}
		var old, both []string
		for _, name := range slices.Backward(s.order(view)) {
			if has[name].Signer != signer {
				old = append(old, name)
			}
			if len(has[name].CAs) > 1 {
				both = append(both, name)
			}
		}
		switch {
		case len(old) > 0:
			err = s.inTurn(view, old, "has a new certificate", func(n cluster.Node) error {
				var now certs.Info
				if err := s.trust(ctx, n, next, ca.Key); err != nil {
					return err
				}
				return s.Peers.Renew(ctx, n, &now)
			})
		case len(both) > 0:
			err = s.inTurn(view, both, "trusts the new CA alone", func(n cluster.Node) error { return s.trust(ctx, n, ca.New, ca.Key) })
		default:
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// ask hears every member. It fails where one does not answer.
func (s Succession) ask(ctx context.Context) (view cluster.View, has map[string]certs.Trusted, err error) {
	if view, err = s.View(ctx); err != nil {
		return view, nil, err
	}
	has = map[string]certs.Trusted{}
	for _, name := range s.order(view) {
		var told certs.Trusted
		if err := s.Peers.Certificates(ctx, view.Nodes[name], &told); err != nil {
			return view, nil, fmt.Errorf("%s does not answer, and every member must learn of the new CA: bring it back, or remove it with 'understudy cluster nodes remove %s', and repeat the command: %w", name, name, err)
		}
		has[name] = told
	}
	return view, has, nil
}

// all does something to every member there is by then.
func (s Succession) all(ctx context.Context, what string, do func(cluster.Node) error) error {
	view, err := s.View(ctx)
	if err != nil {
		return err
	}
	return s.inTurn(view, s.order(view), what, do)
}

func (s Succession) inTurn(view cluster.View, names []string, what string, do func(cluster.Node) error) error {
	for _, name := range names {
		if err := do(view.Nodes[name]); err != nil {
			return fmt.Errorf("%w; the members trust both CAs, or the one that is in use: repeat the command on %s", err, s.Host.Record.Node.Name)
		}
		s.Say(name + " " + what + ".")
	}
	return nil
}

// order begins with this node, so that what was begun is known here, and goes on with
// the managers, who sign for the runners.
func (s Succession) order(view cluster.View) []string {
	names := slices.Sorted(maps.Keys(view.Nodes))
	rank := func(name string) int {
		switch {
		case name == s.Host.Record.Node.Name:
			return 0
		case view.Nodes[name].Kind == cluster.Manager:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(names, func(a, b string) int { return rank(a) - rank(b) })
	return names
}

// trust sends the key of the CA to managers alone.
func (s Succession) trust(ctx context.Context, n cluster.Node, cas, key []byte) error {
	if n.Kind == cluster.Runner {
		key = nil
	}
	return s.Peers.Trust(ctx, n, cas, key)
}
