package filesync

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/syncthing/syncthing/lib/config"
	"github.com/syncthing/syncthing/lib/connections"
	"github.com/syncthing/syncthing/lib/connections/registry"
	"github.com/syncthing/syncthing/lib/db"
	"github.com/syncthing/syncthing/lib/db/backend"
	"github.com/syncthing/syncthing/lib/discover"
	"github.com/syncthing/syncthing/lib/events"
	"github.com/syncthing/syncthing/lib/fs"
	"github.com/syncthing/syncthing/lib/model"
	"github.com/syncthing/syncthing/lib/protocol"
	"github.com/thejerf/suture/v4"

	"github.com/understudy-ha/understudy/cluster"
)

// A connection that ends before Syncthing began to use it, a second after it
// was made, waits in vain for its last message to be sent: not ten seconds.
func init() { protocol.CloseTimeout = time.Second }

// Engine is a running Syncthing. It is made by Open, begins as a receiver that
// talks to nobody, and must be closed. Its methods may be called at any time from
// any goroutine.
type Engine struct {
	opts    Options
	log     *slog.Logger
	self    protocol.DeviceID
	folders []*folder

	index  *db.Lowlevel
	events events.Logger
	cfg    config.Wrapper
	model  model.Model
	conns  connections.Service

	cancel context.CancelFunc
	done   chan struct{} // closed when all of it has stopped
	err    error         // why; valid once done is closed

	poke    chan struct{} // something moved: look again
	changed chan struct{} // the report may read otherwise

	applying sync.Mutex // one change of configuration at a time

	mu        sync.Mutex
	role      Role // never Unknown once one was set
	held      bool // the role is not certain at present
	epoch     cluster.Epoch
	active    string // name of the active peer, while receiving
	peers     []peer
	alone     bool // talks to the active only, see settled
	published cluster.FilesReport
}

type peer struct {
	Peer
	id    protocol.DeviceID
	reset bool // paused for a moment, to drop a dead connection
}

// folder is one folder as the engine tends it. Its fields but the first three
// belong to Engine.mu.
type folder struct {
	Folder
	keeper *keeper
	kind   fs.FilesystemType
	round  int  // counts the restarts of the folder
	ready  bool // scanned in full since the latest
	last   bool // see observation

	watchErr error // the kernel gives no notice of changes
	tries    int   // of override or revert in a row
	next     time.Time
}

// Open starts Syncthing with the folders. A folder that this node sees for the
// first time is made, with its marker.
func Open(o Options) (*Engine, error) {
	o, err := o.complete()
	if err != nil {
		return nil, fmt.Errorf("open file sync: %w", err)
	}
	takeLog(o.Logger)
	e := &Engine{
		opts: o, log: o.Logger, self: protocol.NewDeviceID(o.Certificate.Certificate[0]),
		poke: make(chan struct{}, 1), changed: make(chan struct{}, 1), done: make(chan struct{}),
		role: Receiving, held: true, alone: true,
	}
	if e.peers, err = readPeers(o.StateDir); err != nil {
		return nil, fmt.Errorf("open file sync: %w", err)
	}
	for _, f := range o.Folders {
		if err := e.addFolder(f); err != nil {
			return nil, fmt.Errorf("open file sync: %w", err)
		}
	}
	if err := e.start(); err != nil {
		return nil, fmt.Errorf("open file sync: %w", err)
	}
	return e, nil
}

func (e *Engine) addFolder(f Folder) error {
	if err := prepare(e.opts.StateDir, f); err != nil {
		return err
	}
	meta := filepath.Join(e.opts.StateDir, "ignores", f.ID)
	if err := writeIgnores(meta, f.Ignore); err != nil {
		return err
	}
	k := &keeper{
		root:     f.Path,
		versions: e.versions(f.ID),
		meta:     fs.NewFilesystem(fs.FilesystemTypeBasic, meta),
		local:    func(name string) bool { return e.changedHere(f.ID, name) },
	}
	k.grew.Store(true) // look once after a start
	if err := os.MkdirAll(k.versions, 0o700); err != nil {
		return fmt.Errorf("make place for versions: %w", err)
	}
	e.folders = append(e.folders, &folder{Folder: f, keeper: k, kind: k.register(f.ID)})
	return nil
}

// versions is where the kept versions of a folder lie.
func (e *Engine) versions(id string) string { return filepath.Join(e.opts.StateDir, "versions", id) }

// changedHere says whether this node itself made the version of the entry that
// it holds. What is not known counts as changed here, which keeps it longer.
func (e *Engine) changedHere(id, name string) bool {
	file, ok, err := e.model.CurrentFolderFile(id, name)
	return err != nil || !ok || file.IsReceiveOnlyChanged() || file.Version.IsEmpty() || file.ModifiedBy == e.self.Short()
}

func (e *Engine) start() error {
	store, err := backend.Open(filepath.Join(e.opts.StateDir, "index"), backend.TuningSmall)
	if err != nil {
		return fmt.Errorf("open index: %w", err)
	}
	e.events = events.NewLogger()
	if e.index, err = db.NewLowlevel(store, e.events); err != nil {
		return errors.Join(fmt.Errorf("open index: %w", err), store.Close())
	}
	if err := db.UpdateSchema(e.index); err != nil {
		return errors.Join(fmt.Errorf("open index: %w", err), store.Close())
	}
	first := config.New(e.self)
	e.configure(&first)
	first.Folders = nil                              // they come with the first change, which checks them
	e.cfg = config.Wrap("", first, e.self, e.events) // no path: nothing is saved
	keys := protocol.NewKeyGenerator()
	e.model = model.NewModel(e.cfg, e.self, e.index, nil, e.events, keys)
	e.conns = connections.NewService(e.cfg, e.self, e.model, e.opts.tlsConfig(e.inbound), noDiscovery{},
		bepProtocol, e.opts.Name, e.events, registry.New(), keys)

	ctx, cancel := context.WithCancel(context.Background())
	e.cancel = cancel
	e.serve(ctx)
	ready, enough := context.WithTimeout(ctx, 30*time.Second)
	defer enough()
	if err := e.apply(ready, true); err != nil {
		return errors.Join(err, e.Close())
	}
	return nil
}

// serve runs Syncthing's services until ctx ends or one of them fails. Those
// that the others call stop last: a service that ends tells it to them.
func (e *Engine) serve(ctx context.Context) {
	lowest, stop := context.WithCancel(context.Background())
	base := supervise("file-sync base", e.events, e.cfg)
	baseDone := base.ServeBackground(lowest)
	top := supervise("file-sync", e.index, e.model, e.conns)
	topDone := top.ServeBackground(ctx)

	sub := e.events.Subscribe(events.LocalIndexUpdated | events.RemoteIndexUpdated | events.StateChanged |
		events.DeviceConnected | events.DeviceDisconnected | events.FolderErrors)
	var ours sync.WaitGroup
	ours.Go(func() { e.listen(ctx, sub) })
	ours.Go(func() { e.tend(ctx) })
	ours.Go(func() { e.thinOut(ctx) })
	for _, f := range e.folders {
		ours.Go(func() { e.watch(ctx, f) })
	}
	go func() {
		if err := <-topDone; ctx.Err() == nil {
			e.err = err
		}
		e.cancel()
		ours.Wait()
		e.index.Close()
		stop()
		<-baseDone
		close(e.done)
	}()
}

func supervise(name string, services ...suture.Service) *suture.Supervisor {
	s := suture.New(name, suture.Spec{PassThroughPanics: true})
	for _, service := range services {
		s.Add(service)
	}
	return s
}

// Close stops everything and waits for it. The index is left consistent.
func (e *Engine) Close() error {
	e.cancel()
	<-e.done
	return e.err
}

// Done is closed when the engine has stopped, by Close or because it failed.
func (e *Engine) Done() <-chan struct{} { return e.done }

// Changed yields a value after something moved that Report speaks of.
func (e *Engine) Changed() <-chan struct{} { return e.changed }

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// listen turns Syncthing's events into the wish to look again.
func (e *Engine) listen(ctx context.Context, sub events.Subscription) {
	defer sub.Unsubscribe()
	for {
		select {
		case <-ctx.Done():
			return
		case <-sub.C():
			notify(e.poke)
			notify(e.changed)
		}
	}
}

// thinOut bounds the versions that were replaced in the ordinary way.
func (e *Engine) thinOut(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		for _, f := range e.folders {
			if !f.keeper.grew.Swap(false) {
				continue
			}
			if err := thin(e.versions(f.ID), time.Now().Add(-e.opts.KeepFor), e.opts.KeepCount); err != nil {
				e.log.Warn("cannot thin out versions", "folder", f.ID, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// noDiscovery finds nobody: every peer has a fixed address.
type noDiscovery struct{}

func (noDiscovery) Lookup(context.Context, protocol.DeviceID) ([]string, error) { return nil, nil }
func (noDiscovery) Error() error                                                { return nil }
func (noDiscovery) String() string                                              { return "none" }
func (noDiscovery) Cache() map[protocol.DeviceID]discover.CacheEntry            { return nil }
