package filesync

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// running makes sites that run, of which the first is active.
func running(t *testing.T, names ...string) (*store, []*site) {
	st, s := newSites(t, names...)
	st.activate(names[0], 1)
	for _, x := range s {
		x.run()
	}
	return st, s
}

func pair(t *testing.T) (*store, *site, *site) {
	st, s := running(t, "a", "b")
	return st, s[0], s[1]
}

func trio(t *testing.T) (*store, *site, *site, *site) {
	st, s := running(t, "a", "b", "c")
	return st, s[0], s[1], s[2]
}

func TestChangesOfTheActiveReachAll(t *testing.T) {
	_, a, b, c := trio(t)
	a.write("notes/one.txt", "one")
	a.write("two.txt", "two")
	a.write("big.bin", strings.Repeat("0123456789abcdef", 1<<16))
	a.write("scratch.ignored", "stays here")
	ok(t, os.Symlink("two.txt", a.path("link")))
	ok(t, os.Chmod(a.path("two.txt"), 0o640))
	has(t, "notes/one.txt", "one", b, c)
	has(t, "two.txt", "two", b, c)
	has(t, "big.bin", a.read("big.bin"), b, c)
	inSync(t, 1, a, b, c)

	a.write("notes/one.txt", "one, changed")
	ok(t, os.Rename(a.path("two.txt"), a.path("renamed.txt")))
	ok(t, os.Remove(a.path("link")))
	has(t, "notes/one.txt", "one, changed", b, c)
	has(t, "renamed.txt", "two", b, c)
	has(t, "two.txt", "-", b, c)
	for _, s := range []*site{b, c} {
		eventually(t, "mode follows", func() bool {
			info, err := os.Stat(s.path("renamed.txt"))
			return err == nil && info.Mode().Perm() == 0o640
		})
		eventually(t, "link is kept", func() bool { return slices.Equal(s.kept("", "link"), []string{"-> two.txt"}) })
		if got := s.kept(keptReplaced, "notes/one.txt"); !slices.Equal(got, []string{"one"}) {
			t.Errorf("%s kept %q of the replaced file", s.name, got)
		}
		if s.read("scratch.ignored") != "-" {
			t.Errorf("%s received an ignored file", s.name)
		}
		if _, err := os.Lstat(s.path(".stignore")); err == nil {
			t.Errorf("%s: patterns lie in the folder", s.name)
		}
	}
	ok(t, os.RemoveAll(a.path("notes")))
	for _, s := range []*site{b, c} {
		eventually(t, "directory goes", func() bool { _, err := os.Lstat(s.path("notes")); return os.IsNotExist(err) })
		if got := s.kept("", "notes/one.txt"); !slices.Equal(got, []string{"one", "one, changed"}) {
			t.Errorf("%s kept %q", s.name, got)
		}
		if got := s.kept("", "notes"); !slices.Equal(got, []string{"(directory)"}) {
			t.Errorf("%s kept %q of the directory", s.name, got)
		}
	}
}

func TestReportCountsWhatIsWanting(t *testing.T) {
	st, s := newSites(t, "a", "b")
	a, b := s[0], s[1]
	st.activate("a", 1)
	a.run()
	a.write("one", "1")
	inSync(t, 1, a)
	b.run()
	inSync(t, 1, b)
	has(t, "one", "1", b) // complete was not said before it was there
	eventually(t, "same sequence", func() bool { return a.report().Sequence == b.report().Sequence })
	if r := a.report(); !r.Sending || r.Epoch != 1 || r.Problem != "" {
		t.Errorf("active reports %+v", r)
	}
	b.stop()
	a.write("two", "2")
	before := a.report().Sequence
	eventually(t, "the active has scanned", func() bool { return a.report().Sequence > before })
	a.stop()
	b.run() // the active is away: what it published says that b lacks something
	eventually(t, "b knows that it lacks something", func() bool { return b.report().Complete == cluster.No })
	if got := b.report().Sequence; got != before {
		t.Errorf("sequence held is %d, want %d", got, before)
	}
}

func TestRoleMovesAndFormerActiveFollows(t *testing.T) {
	st, a, b, c := trio(t)
	a.write("x", "from a")
	has(t, "x", "from a", b, c)
	inSync(t, 1, a, b, c)

	st.activate("b", 2)
	inSync(t, 2, a, b, c)
	b.write("x", "from b")
	b.write("y", "new")
	has(t, "x", "from b", a, c)
	has(t, "y", "new", a, c)
	inSync(t, 2, a, b, c)

	a.write("x", "too late") // a receives now
	eventually(t, "a keeps its edit", func() bool { return slices.Contains(a.keptLike(keptLocal, "x"), "too late") })
	has(t, "x", "from b", a)
	for _, s := range []*site{b, c} {
		if s.read("x") != "from b" || slices.Contains(s.keptLike("", "x"), "too late") {
			t.Errorf("%s took the former active's edit", s.name)
		}
	}
}

// A former active comes back with changes that it had scanned but not sent: an
// edit, an edit of what the new active edited too, a delete and a new file.
// Syncthing announces them even from a receiver.
func TestUnsentChangesOfAFormerActiveDoNotSpread(t *testing.T) {
	st, a, b, c := trio(t)
	for _, name := range []string{"edited", "both", "deleted"} {
		a.write(name, "old")
		has(t, name, "old", b, c)
	}
	inSync(t, 1, a, b, c)
	b.stop()
	c.stop()
	before := a.report().Sequence
	a.write("edited", "unsent")
	a.write("both", "unsent")
	a.write("sub/new", "unsent")
	ok(t, os.Remove(a.path("deleted")))
	eventually(t, "a has scanned", func() bool { return a.report().Sequence >= before+5 })
	a.stop()

	st.activate("b", 2)
	b.run()
	c.run()
	inSync(t, 2, b, c)
	b.write("both", "from b")
	has(t, "both", "from b", c)
	inSync(t, 2, b, c)

	a.run()
	inSync(t, 2, a, b, c)
	for _, s := range []*site{a, b, c} {
		for name, want := range map[string]string{"edited": "old", "both": "from b", "deleted": "old", "sub/new": "-"} {
			if got := s.read(name); got != want {
				t.Errorf("%s: %s = %q, want %q", s.name, name, got, want)
			}
		}
	}
	for _, name := range []string{"edited", "both", "sub/new"} {
		// What both sides had edited became a conflict copy first.
		if got := a.keptLike(keptLocal, name); !slices.Contains(got, "unsent") {
			t.Errorf("a did not keep its %s: %q", name, got)
		}
		for _, s := range []*site{b, c} {
			if got := s.keptLike("", name); slices.Contains(got, "unsent") {
				t.Errorf("%s had the unsent %s for a while", s.name, name)
			}
		}
	}
	if got := c.kept("", "deleted"); len(got) > 0 {
		t.Errorf("c deleted a file for a while")
	}
	has(t, "both", "from b", a, b, c)
	b.write("after", "goes on")
	has(t, "after", "goes on", a, c)
}

// Until the new active overrides, a former one whose version of a file is newer
// than all needs nothing, and yet it is not as the active is.
func TestUnsentChangesAreNotComplete(t *testing.T) {
	st, a, b := pair(t)
	a.write("x", "old")
	has(t, "x", "old", b)
	inSync(t, 1, a, b)
	b.stop()
	before := a.report().Sequence
	a.write("x", "unsent")
	eventually(t, "a has scanned", func() bool { return a.report().Sequence > before })
	a.stop()

	st.activate("b", 2)
	b.run()
	inSync(t, 2, b)
	ok(t, b.engine.SetRole(t.Context(), Unknown, 0, "")) // as if the registry could not be read: it does not override
	a.run()
	eventually(t, "b hears of the change", func() bool { return b.report().Need == 1 })
	eventually(t, "a has scanned and heard all", func() bool {
		r := a.report()
		return r.Epoch == 2 && r.Complete != cluster.Unknown && r.Sequence == b.report().Sequence
	})
	if r := a.report(); r.Need != 0 || r.Complete != cluster.No {
		t.Errorf("a reports %+v", r)
	}
	ok(t, b.engine.SetRole(t.Context(), Sending, 2, ""))
	inSync(t, 2, a, b)
	if got := a.read("x"); got != "old" {
		t.Errorf("a is complete and has x = %q", got)
	}
	if got := a.kept(keptLocal, "x"); !slices.Contains(got, "unsent") {
		t.Errorf("a kept %q", got)
	}
}

func TestEditsOnAStandbyAreKeptAndReverted(t *testing.T) {
	_, a, b, c := trio(t)
	a.write("x", "right")
	a.write("gone", "right")
	has(t, "x", "right", b, c)
	has(t, "gone", "right", b, c)
	inSync(t, 1, a, b, c)

	b.write("x", "edited on b")
	b.write("dir/new", "made on b")
	ok(t, os.Remove(b.path("gone")))
	eventually(t, "the edit is kept", func() bool { return slices.Contains(b.kept(keptLocal, "x"), "edited on b") })
	eventually(t, "the new file is kept", func() bool { return slices.Contains(b.kept(keptLocal, "dir/new"), "made on b") })
	has(t, "x", "right", b)
	has(t, "dir/new", "-", b)
	has(t, "gone", "right", b)
	inSync(t, 1, a, b, c)
	for _, s := range []*site{a, c} {
		if s.read("x") != "right" || s.read("dir/new") != "-" || s.read("gone") != "right" {
			t.Errorf("%s took an edit of a standby", s.name)
		}
	}
}

// The edit is made while the registry cannot be read, so that it is still there
// when the node is named.
func TestPromotionDoesNotPublishEditsOfTheStandby(t *testing.T) {
	st, a, b, c := trio(t)
	a.write("x", "right")
	has(t, "x", "right", b, c)
	inSync(t, 1, a, b, c)

	st.fail(true)
	eventually(t, "b does not act", func() bool { return !a.report().Sending })
	b.write("x", "edited on b")
	b.write("new", "made on b")
	a.stop()
	if b.read("x") != "edited on b" {
		t.Fatal("reverted without a known active")
	}
	st.change(func(v *cluster.View) {
		v.NextMaster = cluster.Assignment{Node: "b", Epoch: 2}
		v.Leader.Held = false
	})
	st.fail(false)
	has(t, "x", "right", b) // fetched from c
	has(t, "new", "-", b)
	st.activate("b", 2)
	inSync(t, 2, b, c)
	if c.read("x") != "right" || c.read("new") != "-" {
		t.Errorf("c has x = %q, new = %q", c.read("x"), c.read("new"))
	}
	if got := b.kept(keptLocal, "x"); !slices.Contains(got, "edited on b") {
		t.Errorf("b kept %q", got)
	}
}

func TestVersionsInQuickSuccessionAreAllKept(t *testing.T) {
	_, a, b := pair(t)
	texts := []string{"v1", "v2, longer", "v3, longer still", "v4, the longest of them all"}
	for _, text := range texts {
		a.write("x", text)
		has(t, "x", text, b)
	}
	if got := b.kept(keptReplaced, "x"); !slices.Equal(got, texts[:3]) {
		t.Errorf("kept %q", got)
	}
}

func TestAnUnmountedFolderDeletesNothing(t *testing.T) {
	st, a, b, c := trio(t)
	a.write("x", "1")
	a.write("y", "2")
	has(t, "y", "2", b, c)
	inSync(t, 1, a, b, c)

	folder := a.opts.Folders[0].Path
	ok(t, os.Rename(folder, folder+".mounted"))
	ok(t, os.Mkdir(folder, 0o755))
	problem := func() bool {
		r := a.report()
		return r.Complete == cluster.No && strings.Contains(r.Problem, "marker") && strings.Contains(r.Problem, folder)
	}
	eventually(t, "the active says so", problem)
	if err := a.engine.model.ScanFolder("data"); err == nil {
		t.Error("the folder was scanned")
	}
	a.stop()
	a.run() // a restart neither makes a marker nor forgets
	eventually(t, "the active still says so", problem)
	if names, _ := os.ReadDir(folder); len(names) > 0 {
		t.Errorf("something was made in the empty folder: %v", names)
	}
	for _, s := range []*site{b, c} {
		if s.read("x") != "1" || s.read("y") != "2" {
			t.Errorf("%s lost a file", s.name)
		}
	}
	st.activate("b", 2) // not even as a receiver does anything happen there
	b.write("z", "3")
	has(t, "z", "3", c)
	eventually(t, "the former active says so", func() bool { return problem() && a.report().Epoch == 2 })
	if a.read("z") != "-" {
		t.Error("files were put into an empty mount point")
	}
	ok(t, os.Remove(folder))
	ok(t, os.Rename(folder+".mounted", folder))
	has(t, "z", "3", a)
	inSync(t, 2, a, b, c)
}

func TestARestartKeepsIdentityAndIndex(t *testing.T) {
	_, a, b, c := trio(t)
	a.write("x", "1")
	has(t, "x", "1", b, c)
	inSync(t, 1, a, b, c)
	id, sequence := a.engine.self, a.report().Sequence
	a.stop()
	a.write("meanwhile", "2") // written by the manager while file-sync was away
	ok(t, os.Remove(a.path("x")))
	a.run()
	has(t, "meanwhile", "2", b, c)
	has(t, "x", "-", b, c)
	inSync(t, 1, a, b, c)
	if a.engine.self != id {
		t.Error("another device after the restart")
	}
	if got := a.report().Sequence; got < sequence || got > sequence+10 {
		t.Errorf("sequence went from %d to %d", sequence, got)
	}
	if got := a.kept("", "meanwhile"); len(got) > 0 {
		t.Errorf("the active took back its own file: %q", got)
	}
}

func TestConnectionIsMadeAnew(t *testing.T) {
	_, a, b := pair(t)
	inSync(t, 1, a, b)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ok(t, a.engine.Reset(ctx, "b"))
	a.write("x", "1")
	has(t, "x", "1", b)
	if err := a.engine.Reset(ctx, "nobody"); err == nil {
		t.Error("an unknown peer was reset")
	}
}

func TestStandbyEditNeedsACertainRegistry(t *testing.T) {
	st, a, b := pair(t)
	a.write("x", "1")
	has(t, "x", "1", b)
	inSync(t, 1, a, b)
	st.fail(true)
	eventually(t, "a is not certain", func() bool { return !a.report().Sending })
	b.write("x", "edit")
	eventually(t, "b sees the edit", func() bool { return b.report().Complete == cluster.No })
	a.write("y", "still flows")
	has(t, "y", "still flows", b)
	if b.read("x") != "edit" {
		t.Error("reverted though the registry could not be read")
	}
	st.fail(false)
	has(t, "x", "1", b)
}

func TestVersionsMayLieOnAnotherFileSystem(t *testing.T) {
	const shm = "/dev/shm"
	st, s := newSites(t, "a", "b")
	a, b := s[0], s[1]
	dir, err := os.MkdirTemp(shm, "filesync")
	ok(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	b.opts.StateDir = filepath.Join(dir, "state")
	st.activate("a", 1)
	a.run()
	b.run()
	a.write("d/x", "1")
	ok(t, os.Symlink("x", a.path("d/l")))
	has(t, "d/l", "1", b)
	has(t, "d/x", "1", b)
	ok(t, os.RemoveAll(a.path("d")))
	eventually(t, "all is kept", func() bool {
		return slices.Equal(b.kept("", "d/x"), []string{"1"}) && slices.Equal(b.kept("", "d/l"), []string{"-> x"}) &&
			slices.Equal(b.kept("", "d"), []string{"(directory)"})
	})
}
