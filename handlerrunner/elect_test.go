package handlerrunner

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/understudy-ha/understudy/cluster"
)

// A promise that could not be written down is refused, and refused again: that
// it is in memory since the first time is not enough.
func TestPromiseThatCannotBeKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // where the folder should be
		t.Fatal(err)
	}
	h, err := New(Options{Node: "a", State: filepath.Join(t.TempDir(), "none"), Known: filepath.Join(t.TempDir(), "none"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	h.State = filepath.Join(dir, "a.json")
	for range 2 {
		if e, err := h.promise(3, 7); err == nil {
			t.Errorf("promised epoch %d, and nothing is on disk", e)
		}
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if e, err := h.promise(3, 7); e != 3 || err != nil {
		t.Errorf("got epoch %d and %v once the disk is well, want 3", e, err)
	}
	again, err := New(Options{Node: "a", State: h.State, Known: h.Known, Log: h.Log})
	if err != nil {
		t.Fatal(err)
	}
	if got := again.durable.Promise; got != cluster.Epoch(3) {
		t.Errorf("the next run knows of epoch %d, want 3", got)
	}
}
