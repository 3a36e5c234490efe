// Package membership makes a host a member of a cluster and takes it out again.
// Each command is a list of steps. A step may be repeated, and how far a command
// came is on disk, so the same command goes on where it was interrupted. The
// code is the same for real hosts and for dev mode.
package membership

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/packaging"
	"github.com/understudy-ha/understudy/registry"
)

// ErrMember is the error of start and join on a host that is a member already.
var ErrMember = errors.New("this host is already a member of a cluster")

// Progress shows a step when it begins, and again when it is done.
type Progress func(step string, done bool, err error)

type step struct {
	name string                          // as people read it: "clone the database"
	do   func(ctx context.Context) error // may be repeated
}

func (s step) patiently(ctx context.Context) error {
	return registry.Patiently(ctx, func() error { return s.do(ctx) })
}

// run does the steps that are not done yet and keeps the record after each.
func run(ctx context.Context, h *node.Host, steps []step, show Progress) error {
	for _, s := range steps {
		if slices.Contains(h.Record.Done, s.name) {
			continue
		}
		show(s.name, false, nil)
		err := ctx.Err()
		if err == nil {
			err = s.patiently(ctx)
		}
		// Whatever a step says that was cut off: that is the reason.
		if cut := ctx.Err(); err != nil && cut != nil && !errors.Is(err, cut) {
			err = fmt.Errorf("%w: %w", cut, err)
		}
		show(s.name, true, err)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		h.Record.Done = append(h.Record.Done, s.name)
		if err := h.Record.Save(h.Layout.Membership()); err != nil {
			return err
		}
	}
	h.Record.Member = true
	return h.Record.Save(h.Layout.Membership())
}

// inTurn does steps of which no record is kept: all of them, each time.
func inTurn(ctx context.Context, steps []step, show Progress) error {
	for _, s := range steps {
		show(s.name, false, nil)
		err := s.patiently(ctx)
		show(s.name, true, err)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// Request is what an operator asked for. Empty fields have defaults.
type Request struct {
	Name    string       // default: made of the address
	Address string       // IP that the other members reach; default: node.address
	Kind    cluster.Kind // join
	Options cluster.Options
	Token   string // join
	Contact string // join: IP, or IP:port of the API, of a member
}

// alone keeps other runs of start and join off this host until free. The kernel
// frees it when the process dies.
func alone(h *node.Host) (free func(), err error) {
	file := h.Layout.Membership() + ".busy"
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, fmt.Errorf("keep others off this host: %w", err)
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("keep others off this host: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, errors.New("another 'understudy cluster start' or 'join' is at work on this host; wait for its end")
	}
	return func() { f.Close() }, nil
}

// ErrUsage is the error of a request that can work on no host.
var ErrUsage = errors.New("wrong usage")

// begin fills the record of a host on which start or join has not come far, and
// refuses what does not go with what was begun. As long as nothing but the host
// was looked at, nothing was begun: another command, name or address may follow.
func begin(ctx context.Context, h *node.Host, command string, r Request) error {
	rec := &h.Record
	if rec.Removed {
		if err := forget(ctx, h); err != nil {
			return err
		}
	}
	if rec.Member {
		return fmt.Errorf("%w: it is %s", ErrMember, rec.Node.Name)
	}
	n, err := identity(h, command, r)
	if err != nil {
		return err
	}
	begun := len(rec.Done) > 1
	switch {
	case !begun:
		*rec = node.Record{Command: command, Node: n}
		return nil
	case rec.Command != command:
		return fmt.Errorf("an unfinished 'understudy cluster %s' is on this host; repeat that command to finish it", rec.Command)
	case r.Kind != "" && r.Kind != rec.Node.Kind:
		return fmt.Errorf("an unfinished 'understudy cluster %s --kind %s' is on this host; repeat it with that kind", command, rec.Node.Kind)
	case r.Name != "" && r.Name != rec.Node.Name || r.Address != "" && r.Address != rec.Node.Address:
		return fmt.Errorf("an unfinished 'understudy cluster %s' as %s at %s is on this host; repeat it with that name and address", command, rec.Node.Name, rec.Node.Address)
	}
	return nil
}

// forget makes a host that was removed one that knows of no cluster. Its database
// and its files stay as they are, and join refuses them until they are emptied.
func forget(ctx context.Context, h *node.Host) error {
	if err := unguard(h); err != nil { // systemd hears of it by Disable
		return fmt.Errorf("forget the former cluster: %w", err)
	}
	units := h.Units()
	former := packaging.Daemons()
	if h.Record.Node.Kind == cluster.Manager {
		former = append(former, h.Config.Postgres.Unit)
	}
	for _, u := range former {
		if err := errors.Join(units.Disable(ctx, u), units.Stop(ctx, u)); err != nil {
			return fmt.Errorf("forget the former cluster: %w", err)
		}
	}
	sync := h.Layout.FileSync() // but for the versions that it keeps
	for _, old := range []string{
		h.Layout.Removed(), h.Layout.ConsulData(), h.Layout.ConsulConfig(), h.Layout.Handler(), h.Layout.Known(),
		filepath.Join(sync, "index"), filepath.Join(sync, "folders"), filepath.Join(sync, "peers.json"),
	} {
		if err := os.RemoveAll(old); err != nil {
			return fmt.Errorf("forget the former cluster: %w", err)
		}
	}
	if err := h.ForgetSecrets(); err != nil {
		return err
	}
	h.Record = node.Record{}
	return h.Record.Save(h.Layout.Membership())
}

// identity works out what this host is called and where it is reached.
func identity(h *node.Host, command string, r Request) (cluster.Node, error) {
	n := cluster.Node{
		Name: r.Name, Address: r.Address, Kind: h.Config.Node.Kind, Version: node.Version,
		Ports: cluster.Ports{API: h.Config.APIPort(), Status: h.Config.StatusPort(), Postgres: h.Config.Postgres.Port, FileSync: config.FileSyncPort},
	}
	if r.Kind != "" {
		n.Kind = r.Kind
	}
	switch {
	case n.Kind != cluster.Manager && n.Kind != cluster.Runner:
		return n, fmt.Errorf("%w: --kind %q is neither manager nor runner", ErrUsage, n.Kind)
	case n.Kind == cluster.Runner && command == "start":
		return n, fmt.Errorf("%w: node.kind of understudy.yaml is runner: a cluster is started on a manager, which has the data", ErrUsage)
	case n.Kind == cluster.Runner:
		n.Ports.Postgres = 0
	}
	if n.Address == "" {
		n.Address = h.Config.Node.Address
	}
	if n.Address == "" {
		return n, fmt.Errorf("%w: no address is known for this host; give --cluster-host-ip, an IP address that the other members reach", ErrUsage)
	}
	if err := cluster.CheckAddress(n.Address); err != nil {
		return n, fmt.Errorf("%w: --cluster-host-ip: %w", ErrUsage, err)
	}
	if n.Name == "" {
		n.Name = h.Config.Node.Name
	}
	if n.Name == "" {
		n.Name = nameOf(n.Address)
	}
	return n, cluster.CheckName(n.Name)
}

// nameOf makes a name up that is the same whenever it is made up again.
func nameOf(address string) string {
	name := []byte("node-" + address)
	for i, c := range name {
		if c == '.' || c == ':' {
			name[i] = '-'
		}
	}
	return string(name)
}

// await polls until done says so, and tells its last word when ctx ends first.
func await(ctx context.Context, done func(ctx context.Context) (bool, string)) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, status := done(ctx)
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; at last: %s", context.Cause(ctx), status)
		case <-tick.C:
		}
	}
}

// insist repeats what fails with a passing error until it works, or for a time,
// and returns the last error.
func insist(ctx context.Context, atMost time.Duration, do func(context.Context) error, passing func(error) bool) error {
	end := time.Now().Add(atMost)
	for {
		err := do(ctx)
		if err == nil || !passing(err) || ctx.Err() != nil || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}
