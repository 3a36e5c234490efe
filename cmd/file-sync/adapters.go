package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/understudy-ha/understudy/certs"
	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/filesync"
	"github.com/understudy-ha/understudy/filesync/folders"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/registry"
)

// options describe this host's folders and identity.
func options(h *node.Host) (filesync.Options, error) {
	cert, err := h.Certs.Pair()
	if err != nil {
		return filesync.Options{}, err
	}
	ca, err := h.Certs.CA()
	if err != nil {
		return filesync.Options{}, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return filesync.Options{}, errors.New("read the CA's certificate: there is none in the file")
	}
	o := filesync.Options{
		Name:        h.Record.Node.Name,
		Listen:      net.JoinHostPort(h.Record.Node.Address, strconv.Itoa(config.FileSyncPort)),
		Certificate: cert, CA: pool, StateDir: h.Layout.FileSync(),
		Ownership: mayChown(), Logger: h.Log,
		RescanInterval: h.Record.Options().Duration("file_rescan_interval"),
	}
	for _, f := range h.Config.Files {
		id, err := folders.ID(h.Layout.Root, f.Path)
		if err != nil {
			return o, err
		}
		o.Folders = append(o.Folders, filesync.Folder{ID: id, Path: filepath.Clean(f.Path), Ignore: f.Ignore})
	}
	return o, nil
}

// mayChown says whether files can be given to their owners: as root, or with the
// capability that the unit of this daemon has.
func mayChown() bool {
	var data [2]unix.CapUserData // version 3 has two words
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_CHOWN) != 0
}

// lookAgain is how often the files of the certificate and the CAs are looked at.
const lookAgain = 2 * time.Second

// awaitOther waits until the node has another certificate than this, in DER, or other
// CAs than these, as PEM.
func awaitOther(ctx context.Context, d certs.Dir, is, cas []byte) {
	for ctx.Err() == nil {
		pair, err := d.Pair()
		if err == nil && !bytes.Equal(pair.Certificate[0], is) {
			return
		}
		if now, err := d.CA(); err == nil && !bytes.Equal(now, cas) {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookAgain):
		}
	}
}

const announceAgain = 2 * time.Second

// announce tells the others by which device id this node is known, which follows
// from its certificate, and which version of understudy it runs, which an upgrade
// changes. It goes on until the registry has it.
func announce(ctx context.Context, h *node.Host, reg *registry.Client) {
	text, err := h.Certs.Cert()
	if err != nil {
		h.Log.Error("device id not announced", "error", err)
		return
	}
	id, err := filesync.DeviceID(text)
	if err != nil {
		h.Log.Error("device id not announced", "error", err)
		return
	}
	for ctx.Err() == nil {
		err := reg.UpdateNode(ctx, h.Record.Node.Name, func(n *cluster.Node) error {
			n.DeviceID, n.Version = id, node.Version
			return nil
		})
		if err == nil {
			return
		}
		h.Log.Debug("device id not announced yet", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(announceAgain):
		}
	}
}
