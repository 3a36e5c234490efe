package filesync

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/syncthing/syncthing/lib/config"
	"github.com/syncthing/syncthing/lib/model"
	"github.com/syncthing/syncthing/lib/protocol"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/filesync/folders"
	"github.com/understudy-ha/understudy/statefile"
)

// configure sets everything that depends on the engine's options and state.
func (e *Engine) configure(c *config.Configuration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c.GUI.Enabled = false
	o := &c.Options
	o.RawListenAddresses = []string{"tcp://" + e.opts.Listen}
	o.GlobalAnnEnabled, o.LocalAnnEnabled, o.RelaysEnabled, o.NATEnabled = false, false, false, false
	o.CREnabled, o.URAccepted, o.AutoUpgradeIntervalH, o.StartBrowser = false, -1, 0, false
	o.RawGlobalAnnServers, o.RawStunServers = []string{}, []string{}
	o.ReleasesURL, o.CRURL, o.URURL = "", "", ""
	o.ReconnectIntervalS = 5
	o.ProgressUpdateIntervalS = -1
	o.MinHomeDiskFree = config.Size{}                 // of a home that is not used
	o.AlwaysLocalNets = []string{"0.0.0.0/0", "::/0"} // one priority for all, so no connection is ever upgraded
	o.SetLowPriority = false

	mine := config.DeviceConfiguration{DeviceID: e.self, Name: e.opts.Name, Addresses: []string{"tcp://" + e.opts.Listen}}
	c.Devices = []config.DeviceConfiguration{mine}
	sharing := []config.FolderDeviceConfiguration{{DeviceID: e.self}}
	for _, p := range e.peers {
		c.Devices = append(c.Devices, config.DeviceConfiguration{
			DeviceID: p.id, Name: p.Name, CertName: p.Name, Addresses: []string{p.Address},
			Paused: p.reset || e.role == Receiving && e.alone && p.Name != e.active,
		})
		sharing = append(sharing, config.FolderDeviceConfiguration{DeviceID: p.id})
	}
	c.Folders = nil
	for _, f := range e.folders {
		c.Folders = append(c.Folders, e.folderConfig(f, sharing))
	}
}

func (e *Engine) folderConfig(f *folder, sharing []config.FolderDeviceConfiguration) config.FolderConfiguration {
	kind := config.FolderTypeReceiveOnly
	if e.role == Sending {
		kind = config.FolderTypeSendOnly
	}
	return config.FolderConfiguration{
		ID: f.ID, Path: f.Path, Type: kind, Devices: slices.Clone(sharing),
		FilesystemType:        config.FilesystemType(f.kind),
		MarkerName:            folders.Marker(f.ID),
		RescanIntervalS:       max(1, int(e.opts.RescanInterval/time.Second)),
		FSWatcherEnabled:      false, // see watch.go
		MaxConflicts:          -1,
		MinDiskFree:           config.Size{Value: 1, Unit: "%"},
		SyncOwnership:         e.opts.Ownership,
		CaseSensitiveFS:       true,
		ScanProgressIntervalS: -1,
		MaxConcurrentWrites:   2,
		AutoNormalize:         true,
		PullerPauseS:          1,
	}
}

// apply brings the configuration in line with the state, and waits until it is
// in force or ctx ends. restart says that the folders start anew by it.
func (e *Engine) apply(ctx context.Context, restart bool) error {
	e.applying.Lock()
	defer e.applying.Unlock()
	if restart {
		e.mu.Lock()
		for _, f := range e.folders {
			f.ready, f.round, f.tries, f.next = false, f.round+1, 0, time.Time{}
		}
		e.mu.Unlock()
	}
	applied := make(chan error, 1)
	go func() { // goes on when ctx ends: a change that was asked for is made
		w, err := e.cfg.Modify(e.configure)
		if err == nil {
			w.Wait()
		}
		if restart {
			e.restarted()
		}
		applied <- err
	}()
	select {
	case err := <-applied:
		if err != nil {
			return fmt.Errorf("configure file sync: %w", err)
		}
	case <-ctx.Done():
		return fmt.Errorf("configure file sync: %w", ctx.Err())
	case <-e.done:
		return fmt.Errorf("configure file sync: it has stopped: %w", e.err)
	}
	notify(e.poke)
	notify(e.changed)
	return nil
}

// restarted waits, for each folder, until it has been scanned in full. A scan
// of the marker alone costs nothing and is done after the first full one.
func (e *Engine) restarted() {
	for _, f := range e.folders {
		e.mu.Lock()
		round := f.round
		e.mu.Unlock()
		go func() {
			for pause := 10 * time.Millisecond; e.model.ScanFolderSubdirs(f.ID, []string{folders.Marker(f.ID)}) != nil; pause = min(2*pause, time.Second) {
				select {
				case <-e.done:
					return
				case <-time.After(pause):
				}
			}
			e.mu.Lock()
			if f.round == round {
				f.ready = true
			}
			e.mu.Unlock()
			notify(e.poke)
			notify(e.changed)
		}()
	}
}

// peersFile is where the peers are kept: Syncthing forgets what it knows of a
// device that a folder is not shared with, and would have to hear all of it
// again after every start.
func peersFile(stateDir string) string { return filepath.Join(stateDir, "peers.json") }

// readPeers returns the peers that were set last; none is no error.
func readPeers(stateDir string) ([]peer, error) {
	kept, err := statefile.Read[[]Peer](peersFile(stateDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parsePeers(kept)
}

// parsePeers returns the peers in order of their devices.
func parsePeers(list []Peer) ([]peer, error) {
	var peers []peer
	for _, p := range list {
		id, err := protocol.DeviceIDFromString(p.DeviceID)
		if err != nil {
			return nil, fmt.Errorf("device of peer %s: %w", p.Name, err)
		}
		peers = append(peers, peer{Peer: p, id: id})
	}
	slices.SortFunc(peers, func(a, b peer) int { return a.id.Compare(b.id) })
	return peers, nil
}

// SetPeers says who the other members are. A peer that is left out is
// disconnected and forgotten; one whose certificate is another is a new one.
func (e *Engine) SetPeers(ctx context.Context, peers []Peer) error {
	next, err := parsePeers(peers)
	if err != nil {
		return err
	}
	e.mu.Lock()
	same := slices.EqualFunc(e.peers, next, func(a, b peer) bool { return a.Peer == b.Peer })
	if !same {
		e.peers = next
	}
	e.mu.Unlock()
	if same {
		return nil
	}
	if err := statefile.Write(peersFile(e.opts.StateDir), peers); err != nil {
		return err
	}
	return e.apply(ctx, true)
}

// SetRole says what this node's folders are to be, from which epoch on, and
// which peer is active while they receive. Unknown leaves all as it is and
// stops overriding and reverting. It returns when the role is in force; the
// folders are then scanned anew, which Report waits for.
func (e *Engine) SetRole(ctx context.Context, role Role, epoch cluster.Epoch, active string) error {
	e.mu.Lock()
	was, wasEpoch, wasActive, wasHeld := e.role, e.epoch, e.active, e.held
	if role == Unknown {
		e.held = true
		e.mu.Unlock()
		return nil
	}
	e.role, e.epoch, e.held = role, epoch, false
	if role == Receiving {
		e.active = active
	}
	if role == was && epoch == wasEpoch && e.active == wasActive && !wasHeld {
		e.mu.Unlock()
		return nil
	}
	if role == Receiving && (was != Receiving || e.active != wasActive) {
		e.alone = true
	}
	for _, f := range e.folders {
		f.last = false
	}
	e.mu.Unlock()
	if was != role {
		e.log.Info("folders change role", "from", was.String(), "role", role.String(), "epoch", epoch, "active", active)
	}
	err := e.apply(ctx, (was == Sending) != (role == Sending))
	if role == Preparing && was != Preparing {
		e.lookOnceMore()
	}
	return err
}

// lookOnceMore finds edits that were made here while the node still received,
// so that they can be reverted before the node becomes the source.
func (e *Engine) lookOnceMore() {
	for _, f := range e.folders {
		go func() {
			if e.model.ScanFolder(f.ID) != nil {
				return // the report speaks of the folder's error
			}
			e.mu.Lock()
			f.last = e.role == Preparing
			e.mu.Unlock()
			notify(e.poke)
		}()
	}
}

// SetPublished hands over what the active node published last. A report that
// is not of this epoch's source is not used.
func (e *Engine) SetPublished(r cluster.FilesReport) {
	e.mu.Lock()
	moved := e.published.Epoch != r.Epoch || e.published.Sequence != r.Sequence || e.published.Sending != r.Sending
	e.published = r
	e.mu.Unlock()
	if moved {
		notify(e.poke)
		notify(e.changed)
	}
}

// Reset drops the connection to a peer and lets it be made anew. It is for a
// peer that vanished without a word: its connection would count as alive for
// minutes, and a new one be refused. An unknown name is an error.
func (e *Engine) Reset(ctx context.Context, name string) error {
	mark := func(on bool) bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		i := slices.IndexFunc(e.peers, func(p peer) bool { return p.Name == name })
		if i >= 0 {
			e.peers[i].reset = on
		}
		return i >= 0
	}
	if !mark(true) {
		return fmt.Errorf("reset connection: no peer %q", name)
	}
	err := e.apply(ctx, false)
	mark(false)
	if err != nil {
		return err
	}
	return e.apply(ctx, false)
}

// inbound is told of every peer that passed the handshake after dialling us. A
// peer only dials while it has no connection; where we think that it has one,
// and not since just now, ours is dead.
func (e *Engine) inbound(id protocol.DeviceID) {
	if !e.model.ConnectedTo(id) {
		return
	}
	stats, _ := e.model.ConnectionStats()["connections"].(map[string]model.ConnectionStats)
	started := stats[id.String()].Primary.StartedAt
	if started.IsZero() || time.Since(started) < 5*time.Second {
		return // both dialled at the same time
	}
	e.mu.Lock()
	i := slices.IndexFunc(e.peers, func(p peer) bool { return p.id == id && !p.reset })
	var name string
	if i >= 0 {
		name = e.peers[i].Name
	}
	e.mu.Unlock()
	if i < 0 {
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		e.log.Info("peer has come back, its old connection is dead", "peer", name)
		if err := e.Reset(ctx, name); err != nil {
			e.log.Warn("cannot drop a dead connection", "peer", name, "err", err)
		}
	}()
}
