package main

import (
	"context"
	"fmt"
	"time"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/handlerrunner"
	"github.com/understudy-ha/understudy/membership"
)

// certificates are those of this host.
type certificates struct {
	*adapters
	handler *handlerrunner.Handler
}

func (c certificates) Describe() (any, error) { return c.host.Certs.Info() }

// Trust puts other CAs to use, of which file-sync learns by itself.
func (c certificates) Trust(ctx context.Context, cas, key []byte) error {
	if c.pg == nil && len(key) > 0 {
		return fmt.Errorf("%s is a runner, and holds no key of a CA", c.host.Record.Node.Name)
	}
	if err := c.host.Certs.Trust(cas, key); err != nil {
		return err
	}
	return c.renewal().Use(ctx)
}

func (c certificates) Sign(n cluster.Node, csr []byte) ([]byte, error) {
	return c.host.Certs.Sign(csr, n.Name, n.Address, n.Kind)
}

func (c certificates) KeepGossipKey(key string) error { return membership.KeepGossipKey(c.host, key) }

func (c certificates) Renew(ctx context.Context) (any, error) { return c.renew(ctx) }

func (c certificates) renew(ctx context.Context) (certs.Info, error) {
	info, err := c.renewal().Renew(ctx)
	if err == nil {
		c.journal.Write(cluster.EventCertificate, c.handler.View().NextMaster.Epoch,
			fmt.Sprintf("%s has a new certificate, valid until %s", c.host.Record.Node.Name, info.NotAfter.Format(time.DateOnly)), info)
	}
	return info, err
}

func (c certificates) renewal() membership.Renewal {
	r := membership.Renewal{Host: c.host, Uses: []func(context.Context) error{membership.ReloadConsul(c.host, c.reg), membership.RecordCertificate(c.host, c.reg)}}
	if c.pg == nil { // a runner
		r.Sign = membership.SignedByManagers(c.peers, c.handler.View)
	} else {
		r.Uses = append(r.Uses, c.pg.InstallCertificates)
	}
	return r
}

const (
	// lookEvery is how often a daemon looks whether its certificate grows old.
	lookEvery = time.Hour
	// renewAgain is when it tries again what did not work.
	renewAgain = 10 * time.Second
)

// keepFresh renews the node's certificate when two thirds of its life are over, also
// where it has expired while the host was off.
func (c certificates) keepFresh(ctx context.Context) error {
	unused := false // a new one is there, and not in use everywhere
	for {
		pause := lookEvery
		d, err := c.host.Certs.Info()
		switch {
		case err == nil && d.Own.Due(time.Now()):
			_, err = c.renew(ctx)
			unused = err != nil
		case err == nil && unused:
			err = c.renewal().Use(ctx)
			unused = err != nil
		}
		if err != nil && ctx.Err() == nil {
			c.host.Log.Error("certificate not renewed; it is tried again", "valid_until", d.Own.NotAfter, "error", err)
			pause = renewAgain
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}
