package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/understudy-ha/understudy/api"
	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/handlerrunner"
	"github.com/understudy-ha/understudy/membership"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/pgrepl/divergence"
)

// serve answers on the status port and on the API port until ctx ends.
func (a *adapters) serve(ctx context.Context, h *handlerrunner.Handler) error {
	auth, err := a.host.BasicAuth()
	if err != nil {
		return err
	}
	status := api.StatusHandler(h, api.StatusOptions{Paths: a.host.Config.Status.Paths, BasicAuth: auth})
	mux := http.NewServeMux()
	mux.Handle("/api/", api.Handler(api.Backend{
		Node: h, Voter: voter{h}, View: h.View, Caller: certs.PeerName,
		Divergences: divergences{a.host.Layout.Divergence()}, Drill: a.drill, Certificates: certificates{a, h},
		Admit: membership.Admitter{Kind: a.host.Record.Node.Kind, Certs: a.host.Certs, Registry: a.reg, Version: node.Version, Log: a.host.Log},
	}))
	mux.Handle("/", status)
	conf, err := a.host.ServerTLS()
	if err != nil {
		return err
	}
	address := a.host.Record.Node.Address
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return listen(ctx, config.ListenOn(address, a.host.Config.Status.Listen), status, nil) })
	group.Go(func() error { return listen(ctx, config.ListenOn(address, a.host.Config.API.Listen), mux, conf) })
	return group.Wait()
}

func (a *adapters) drill(ctx context.Context, open bool) error {
	if open {
		return a.pg.OpenDrill(ctx)
	}
	return a.pg.CloseDrill(ctx)
}

// divergences is the folder of exports on this host.
type divergences struct{ dir string }

func (d divergences) List() (any, error) { return divergence.List(d.dir) }

func (d divergences) Open(id string) (io.ReadCloser, int64, error) {
	f, err := divergence.Open(d.dir, id)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

func listen(ctx context.Context, address string, h http.Handler, conf *tls.Config) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if conf != nil {
		l = tls.NewListener(l, conf)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 10 * time.Minute}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", address, err)
	}
	return nil
}

// voter gives the refusal of a claim its code.
type voter struct{ *handlerrunner.Handler }

func (v voter) Claim(ctx context.Context, a cluster.Answer) error {
	err := v.Handler.Claim(ctx, a)
	if errors.Is(err, handlerrunner.ErrKept) {
		return api.Errorf(http.StatusConflict, api.CodeKept, "%v", err)
	}
	return err
}
