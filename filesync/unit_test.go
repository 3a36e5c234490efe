package filesync

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

func portOf(t *testing.T, s *site) int {
	_, p, err := net.SplitHostPort(s.opts.Listen)
	ok(t, err)
	n, err := strconv.Atoi(p)
	ok(t, err)
	return n
}

func TestDecideOverAllObservations(t *testing.T) {
	bools := []bool{false, true}
	for _, role := range []Role{Unknown, Receiving, Preparing, Sending} {
		for bits := range 1 << 8 {
			bit := func(i int) bool { return bits>>i&1 == 1 }
			n := func(i int) int { return bits >> i & 1 }
			o := observation{role: role, idle: bit(0), ready: bit(1), connected: bit(2), heard: bit(3), last: bit(4), items: n(5), need: n(6), changed: n(7)}
			do, why := decide(o)
			switch {
			case do != rest && (!o.idle || !o.ready):
				t.Errorf("%+v: acts on a busy folder", o)
			case do == override && (role != Sending || o.need == 0 || o.items == 0):
				t.Errorf("%+v: overrides", o)
			case do == revert && (o.changed == 0 || !o.heard):
				t.Errorf("%+v: reverts", o)
			case do == revert && role == Receiving && !o.connected:
				t.Errorf("%+v: reverts without the active", o)
			case do == revert && role != Receiving && !(role == Preparing && o.last):
				t.Errorf("%+v: reverts in this role", o)
			case do != rest && why == "":
				t.Errorf("%+v: acts without a reason", o)
			case do == rest && role == Sending && o.idle && o.ready && o.need > 0 && o.items > 0:
				t.Errorf("%+v: the active does not prevail", o)
			case do == rest && role == Receiving && o.idle && o.ready && o.changed > 0 && o.connected && o.heard:
				t.Errorf("%+v: an edit stays", o)
			}
			for _, needs := range bools {
				if settled(o, needs) && (role != Receiving || needs || o.need > 0 || o.changed > 0 || !o.heard || !o.connected || !o.idle || !o.ready) {
					t.Errorf("%+v: settled", o)
				}
			}
		}
	}
}

func TestPlanFor(t *testing.T) {
	view := func(change func(*cluster.View)) cluster.View {
		v := cluster.View{
			Info: &cluster.Info{},
			Nodes: map[string]cluster.Node{
				"a": {Name: "a", Address: "10.0.0.1", DeviceID: "A", Ports: cluster.Ports{FileSync: 22000}},
				"b": {Name: "b", Address: "10.0.0.2", DeviceID: "B", Ports: cluster.Ports{FileSync: 22000}},
				"c": {Name: "c", Address: "fd00::3", DeviceID: "C", Ports: cluster.Ports{FileSync: 22001}, Kind: cluster.Runner},
			},
			NextMaster: cluster.Assignment{Node: "a", Epoch: 4},
			Leader:     cluster.Leader{Node: "a", Epoch: 4, Held: true},
		}
		change(&v)
		return v
	}
	for name, tc := range map[string]struct {
		change func(*cluster.View)
		self   string
		role   Role
		epoch  cluster.Epoch
		active string
	}{
		"the holder sends":               {func(*cluster.View) {}, "a", Sending, 4, ""},
		"another one receives":           {func(*cluster.View) {}, "b", Receiving, 4, "a"},
		"nobody holds the lock":          {func(v *cluster.View) { v.Leader.Held = false }, "b", Unknown, 0, ""},
		"the holder lost it":             {func(v *cluster.View) { v.Leader.Held = false }, "a", Unknown, 0, ""},
		"named, while another holds":     {func(v *cluster.View) { v.NextMaster = cluster.Assignment{Node: "b", Epoch: 5} }, "b", Preparing, 5, ""},
		"another one named":              {func(v *cluster.View) { v.NextMaster = cluster.Assignment{Node: "b", Epoch: 5} }, "c", Receiving, 4, "a"},
		"named for an epoch that passed": {func(v *cluster.View) { v.NextMaster = cluster.Assignment{Node: "b", Epoch: 3} }, "b", Receiving, 4, "a"},
		"no cluster in the store":        {func(v *cluster.View) { v.Info = nil }, "a", Unknown, 0, ""},
	} {
		p := planFor(view(tc.change), tc.self)
		if p.role != tc.role || p.epoch != tc.epoch || p.active != tc.active {
			t.Errorf("%s: %+v", name, p)
		}
	}
	p := planFor(view(func(v *cluster.View) {
		v.Removed = map[string]cluster.Tombstone{"b": {Node: "b"}}
		v.Nodes["d"] = cluster.Node{Name: "d"} // joining: no device yet
	}), "a")
	if want := []Peer{{Name: "c", Address: "tcp://[fd00::3]:22001", DeviceID: "C"}}; !slices.Equal(p.peers, want) {
		t.Errorf("peers %+v", p.peers)
	}
}

func TestKeptNames(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	seen := map[string]bool{}
	for _, base := range []string{"x", "x", "x~y", strings.Repeat("long", 60) + ".pdf"} {
		path := freeName(dir, base, now)
		ok(t, os.WriteFile(path, nil, 0o600))
		got, at, fits := keptAt(filepath.Base(path))
		if seen[path] || !fits || at.Before(now) || len(base) < 200 && got != base {
			t.Errorf("%q became %q, read back as %q %v", base, path, got, at)
		}
		seen[path] = true
	}
	if _, _, fits := keptAt("plain~name"); fits {
		t.Error("a plain name was taken for a version")
	}
}

func TestThinKeepsTheNewestAndAllLocalOnes(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 1, 8, 0, 0, 0, 0, time.UTC)
	put := func(half, name string, age time.Duration) string {
		path := filepath.Join(dir, half, name+"~"+now.Add(-age).Format(stamp))
		ok(t, os.MkdirAll(filepath.Dir(path), 0o700))
		ok(t, os.WriteFile(path, nil, 0o600))
		return path
	}
	want := map[string]bool{
		put(keptReplaced, "d/x", 1*time.Hour):          true,
		put(keptReplaced, "d/x", 2*time.Hour):          true,
		put(keptReplaced, "d/x", 3*time.Hour):          false, // the third
		put(keptReplaced, "x", 4*time.Hour):            true,  // another path
		put(keptReplaced, "old", 25*time.Hour):         false,
		put(keptLocal, "d/x", 1000*time.Hour):          true,
		put(keptLocal, "d/x", 1001*time.Hour):          true,
		put(keptLocal, "d/x", 1002*time.Hour):          true,
		filepath.Join(dir, keptReplaced, "d"):          true,
		put(keptReplaced, "e/not a ~version", 0) + ".": false,
	}
	ok(t, thin(dir, now.Add(-24*time.Hour), 2))
	for path, stays := range want {
		if _, err := os.Lstat(path); (err == nil) != stays {
			t.Errorf("%s: stays %v", path, err == nil)
		}
	}
	ok(t, thin(filepath.Join(dir, "nothing"), now, 1))
}

func TestOptionsAreChecked(t *testing.T) {
	_, s := newSites(t, "a")
	for name, spoil := range map[string]func(*Options){
		"host name":        func(o *Options) { o.Listen = "localhost:22000" },
		"no port":          func(o *Options) { o.Listen = "127.0.0.1" },
		"no CA":            func(o *Options) { o.CA = nil },
		"relative state":   func(o *Options) { o.StateDir = "state" },
		"relative folder":  func(o *Options) { o.Folders[0].Path = "data" },
		"slash in id":      func(o *Options) { o.Folders[0].ID = "a/b" },
		"same id twice":    func(o *Options) { o.Folders = append(o.Folders, o.Folders[0]) },
		"state in folder":  func(o *Options) { o.StateDir = filepath.Join(o.Folders[0].Path, "state") },
		"folder is a file": func(o *Options) { o.Folders[0].Path = "/dev/null" },
	} {
		o := s[0].opts
		o.Folders = slices.Clone(o.Folders)
		spoil(&o)
		if e, err := Open(o); err == nil {
			t.Errorf("%s: accepted", name)
			e.Close()
		}
	}
}

func TestDeviceIDRefusesWhatIsNoCertificate(t *testing.T) {
	for _, text := range []string{"", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if id, err := DeviceID([]byte(text)); err == nil {
			t.Errorf("%q is device %s", text, id)
		}
	}
}
