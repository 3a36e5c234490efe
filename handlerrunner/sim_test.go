package handlerrunner

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

var (
	simFirst = flag.Uint64("sim.first", 1, "first seed of the simulator")
	simSeeds = flag.Uint64("sim.seeds", 20, "how many seeds to run, for 3, 5 and 2 nodes unless sim.nodes is given")
	simStep  = flag.Uint64("sim.step", 1, "from one seed to the next: several processes share the work")
	simNodes = flag.Int("sim.nodes", 0, "how many nodes; 0: 3, 5 and 2")
	simTell  = flag.Bool("sim.tell", false, "print the history of every seed")
)

const (
	// healsWithin bounds the time from the end of all faults until everybody
	// streams from one active node that takes writes: a claim whose answer was
	// lost is made again after claimWithin, and a standby that is stranded waits
	// for 30 s before it is cloned.
	healsWithin = claimWithin + 90*time.Second
	maxHistory  = 4000 // lines
	// maxSkew is how far apart clocks are that are kept well: clearly less than
	// cluster.ClockSkew.
	maxSkew = 4 * time.Second
)

// simulation is a world that a seed drives: the handlers as they are, on a
// network, disks and a registry that fail as the dice say.
type simulation struct {
	*world
	seed    uint64
	nodes   int
	names   []string // of the hosts, sorted
	dice    *dice    // of the pump
	procs   map[string]*proc
	running sync.WaitGroup // everything that must end before the bubble can

	cuts     map[link]int // how many faults cut a link
	loss     float64
	naps     map[string]chan struct{} // handlers that stand still alone
	slow     map[string]bool          // disks
	lags     map[string]bool          // standbys that stream, but have much to receive first
	refused  map[string]bool          // hosts whose state cannot be written
	blind    map[string]bool          // hosts whose watcher says nothing of use
	raft     raft
	watches  map[string]*watch
	ends     map[int]func()
	nth      int // ends are numbered in order
	ambushes []ambush
	calm     bool

	promised []commit                 // acknowledged, and to be kept
	acks     int                      // including those of sync_mode async
	epochs   map[string]cluster.Epoch // for which each host took the lock last
	acking   cluster.Epoch            // the latest in which somebody acknowledged
	naming   naming                   // the latest
	ready    cluster.Leader
	words    map[string]word
	loose    map[string]time.Time // since when a host has been open without a lease

	risky       []commit           // acknowledged at risk, or given up by a heal: to be kept or exported
	wrote       map[int]written    // who wrote a commit, and when
	served      map[int]string     // records with which a part began, and who served it
	exportedAll map[int]bool       // commits
	copies      map[string][][]int // WAL of directories beside which a clone was made
	timelines   map[made]maker
	// Since when two hosts have reached each other; both been open; both as the active node.
	met, rivals, doubles map[pair]time.Time
	paused               bool // stays so until the end
	tally                tally

	telling   sync.Mutex
	recording bool
	began     time.Time
	history   []string
	broken    string // the first thing that did not hold
}

func newSimulation(seed uint64, nodes int, dir string, recording bool) *simulation {
	w := &world{dir: dir, hosts: map[string]*host{}, seen: map[string]bool{}, ackedBy: map[string]time.Time{}, madeAt: map[int]time.Time{}}
	w.reg = newRegistry(w)
	w.ctx, w.cancel = context.WithCancel(context.Background())
	s := &simulation{
		world: w, seed: seed, nodes: nodes, dice: diceOf(seed, "pump", 0), procs: map[string]*proc{},
		cuts: map[link]int{}, naps: map[string]chan struct{}{}, slow: map[string]bool{}, lags: map[string]bool{}, refused: map[string]bool{}, blind: map[string]bool{},
		watches: map[string]*watch{}, ends: map[int]func(){}, epochs: map[string]cluster.Epoch{}, words: map[string]word{},
		loose: map[string]time.Time{}, recording: recording, began: time.Now(),
		wrote: map[int]written{}, served: map[int]string{}, exportedAll: map[int]bool{}, copies: map[string][][]int{},
		timelines: map[made]maker{}, met: map[pair]time.Time{}, rivals: map[pair]time.Time{}, doubles: map[pair]time.Time{}, tally: tally{},
	}
	w.sim = s
	return s
}

// tell adds to the history.
func (s *simulation) tell(node, format string, args ...any) {
	if !s.recording {
		return
	}
	s.telling.Lock()
	defer s.telling.Unlock()
	if len(s.history) < maxHistory {
		s.history = append(s.history, fmt.Sprintf("%9.4f %-2s %s", time.Since(s.began).Seconds(), node, fmt.Sprintf(format, args...)))
	}
}

// violate ends the seed: something that must always hold does not.
func (s *simulation) violate(format string, args ...any) {
	if s.failed() == "" {
		s.tell("", "VIOLATION: "+format, args...)
		s.telling.Lock()
		defer s.telling.Unlock()
		s.broken = fmt.Sprintf(format, args...)
	}
}

func (s *simulation) failed() string {
	s.telling.Lock()
	defer s.telling.Unlock()
	return s.broken
}

// newHost adds a machine with the data directory that every cluster begins with.
func (s *simulation) newHost(name string) *host {
	h := &host{w: s.world, name: name, verdict: cluster.Majority, dead: true}
	h.pg = newPG(h)
	h.units = &fakeUnits{h, map[string]bool{}, map[string]bool{}, map[string]bool{}, 0, nil, nil}
	s.hosts[name] = h
	s.names = s.sorted()
	s.reg.view.Nodes[name] = cluster.Node{Name: name, Kind: cluster.Manager, Address: name}
	if err := os.MkdirAll(filepath.Join(s.dir, name), 0o755); err != nil {
		s.violate("%v", err)
	}
	return h
}

// play runs the seed: a cluster comes about, suffers, and must recover.
func (s *simulation) play() {
	d := diceOf(s.seed, "begin", 0)
	s.draw(d)
	s.reg.view.NextMaster, s.reg.view.NextMasterIndex = cluster.Assignment{
		Node: "a", Epoch: 1, Reason: "the cluster is started on it", Past: cluster.History{{Timeline: 1, LSN: s.hosts["a"].pg.lsn()}},
	}, 1
	s.naming.Assignment = s.reg.view.NextMaster
	s.reg.touch()
	for _, name := range s.names {
		s.boot(s.hosts[name])
		time.Sleep(d.upTo(50 * time.Millisecond))
	}
	s.running.Go(s.pump)
	if s.reg.view.Info.Options["preferred_primary"] != "" && d.chance(0.1) {
		s.wait(settleFor - d.upTo(3*time.Second)) // so that it comes back when the faults begin
	}
	s.nemesis()
	s.wait(d.upTo(2 * time.Second))
	s.relax()
	s.mu.Lock()
	if s.ready.Epoch == 0 { // nothing can be said of a cluster that never was
		s.paused = false
		s.setPause(nil)
	}
	paused := s.reg.view.Info.Paused != nil
	s.mu.Unlock()
	if !paused {
		s.recover()
	} else {
		s.wait(10 * time.Second) // nobody asks for more than that nothing is lost
	}
	s.finish()
}

// draw chooses what the cluster is like.
func (s *simulation) draw(d *dice) {
	s.reg.view.Info.Options = cluster.Options{
		"sync_mode":      []string{"available", "available", "strict", "async"}[d.below(8)/2],
		"minority_mode":  []string{"active", "active", "active", "active", "active", "active", "read-only", "off"}[d.below(8)],
		"heal":           []string{"most-recent", "most-recent", "most-recent", "majority"}[d.below(4)],
		"minority_after": []string{"1s", "2s", "4s"}[d.below(3)],
	}
	s.raft.hosted = s.nodes == 2 || d.chance(0.6)
	s.paused = d.chance(0.05)
	for i := range s.nodes {
		h := s.newHost(string(rune('a' + i)))
		h.fast = d.upTo(maxSkew) - maxSkew/2
	}
	if d.chance(0.2) {
		s.hosts[s.names[d.below(s.nodes)]].fast += d.upTo(time.Minute) - 30*time.Second
	}
	if d.chance(0.3) {
		s.reg.view.Info.Options["preferred_primary"] = s.names[d.below(s.nodes)]
	}
	s.tell("", "seed %d, %d nodes, %v", s.seed, s.nodes, s.reg.view.Info.Options)
	for _, name := range s.names {
		s.tell(name, "its clock is fast by %s", s.hosts[name].fast)
	}
}

// wait lets time pass unless something is broken already.
func (s *simulation) wait(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end) && s.failed() == ""; {
		time.Sleep(min(100*time.Millisecond, time.Until(end)))
	}
}

// recover asserts that the cluster does, and stays so.
func (s *simulation) recover() {
	end := time.Now().Add(healsWithin)
	for good := 0; good < 5 && s.failed() == ""; {
		s.wait(201 * time.Millisecond)
		s.mu.Lock()
		missing := s.converged()
		if good++; missing != "" {
			good = 0
		}
		if good == 0 && time.Now().After(end) {
			s.violate("no recovery within %s: %s", healsWithin, missing)
		}
		if good == 5 {
			s.settled(s.hosts[s.reg.view.Leader.Node].pg)
		}
		s.mu.Unlock()
	}
}

// finish stops everything.
func (s *simulation) finish() {
	s.cancel()
	s.mu.Lock()
	if s.ready.Epoch == 0 {
		s.violate("the generator: nobody was ever active")
	}
	for _, name := range s.names {
		if h := s.hosts[name]; h.thaw != nil {
			close(h.thaw)
			h.thaw = nil
		}
		if nap := s.naps[name]; nap != nil {
			close(nap)
			delete(s.naps, name)
		}
		s.kill(s.hosts[name])
	}
	for id := range s.reg.sessions {
		s.reg.drop(id)
	}
	s.mu.Unlock()
	s.running.Wait()
}

// simulate runs one seed and returns what did not hold, and the history if it was
// recorded.
func simulate(t *testing.T, dir string, seed uint64, nodes int, recording bool) (broken string, history []string, counts tally) {
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(*testing.T) {
		s := newSimulation(seed, nodes, dir, recording)
		s.play()
		broken, history, counts = s.failed(), s.history, s.tally
	})
	return broken, history, counts
}

// simDir is a folder in memory, where there is one: state files are synced.
func simDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "understudy-sim-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "state")
}

// oneAtATime makes the order of goroutines that are ready at the same instant
// as predictable as it can be.
func oneAtATime(t *testing.T) {
	was := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(was) })
}

func simSizes() []int {
	if *simNodes > 0 {
		return []int{*simNodes}
	}
	return []int{3, 5, 2}
}

// TestSimulation runs seeds and prints the history of the first one that fails.
func TestSimulation(t *testing.T) {
	oneAtATime(t)
	dir := simDir(t)
	for _, nodes := range simSizes() {
		began, counts := time.Now(), tally{}
		for i := range *simSeeds {
			seed := *simFirst + i**simStep
			broken, history, drawn := simulate(t, dir, seed, nodes, *simTell)
			counts.add(drawn)
			if *simTell {
				t.Log(strings.Join(history, "\n"))
			}
			if broken != "" {
				again, history, _ := simulate(t, dir, seed, nodes, true)
				t.Fatalf("seed %d, %d nodes, is the %d. of this run: %s\nagain: %s\n%s\nmake sim SEED=%d NODES=%d plays it again",
					seed, nodes, i+1, broken, again, strings.Join(history, "\n"), seed, nodes)
			}
		}
		t.Logf("%d seeds of %d nodes: nothing broken, %.1f ms each", *simSeeds, nodes, time.Since(began).Seconds()*1000/float64(*simSeeds))
		if testing.Verbose() {
			fmt.Print(counts)
		}
	}
}

// The same seed gives the same history.
func TestSimulationIsDeterministic(t *testing.T) {
	oneAtATime(t)
	dir := simDir(t)
	for seed := uint64(1); seed <= 20; seed++ {
		_, first, _ := simulate(t, dir, seed, 3, true)
		_, second, _ := simulate(t, dir, seed, 3, true)
		if len(first) < 20 {
			t.Errorf("seed %d: a history of %d lines", seed, len(first))
		}
		if !slices.Equal(first, second) {
			t.Errorf("seed %d went otherwise the second time:\n%s", seed, difference(strings.Join(first, "\n"), strings.Join(second, "\n")))
		}
	}
}
