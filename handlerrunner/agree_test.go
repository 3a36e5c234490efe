package handlerrunner

import (
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Both standbys hold an election at the same time. They name the same node for
// the same epoch, and one of them is the first to write it.
func TestElectorsAgree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		go w.client()
		defer w.end()
		for _, command := range [][]string{{"trio"}, {"kill-postgres", "a"}} {
			if err := w.do(command); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		by := map[string]bool{}
		for _, a := range w.names {
			if a.Epoch != 2 || a.Node != w.names[0].Node {
				t.Errorf("%s named %s for epoch %d, %s named %s", a.By, a.Node, a.Epoch, w.names[0].By, w.names[0].Node)
			}
			by[a.By] = true
		}
		if len(by) != 2 {
			t.Errorf("electors %v, want both standbys", by)
		}
	})
}

// An active that loses its lock is not open any more when another one is, on
// whatever moment of the renewal the network goes.
func TestOneIsOpenAtATime(t *testing.T) {
	for _, wait := range []time.Duration{0, 50, 100, 150, 200, 250, 300} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			go w.client()
			defer w.end()
			if err := w.do([]string{"trio"}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(wait * time.Millisecond)
			if err := w.do([]string{"isolate", "a"}); err != nil {
				t.Fatal(err)
			}
			a, b := w.hosts["a"].handler, w.hosts["b"].handler
			var closed, opened time.Time
			for began := time.Now(); time.Since(began) < 6*time.Second; time.Sleep(time.Millisecond) {
				if closed.IsZero() && a.Mode() == cluster.Closed {
					closed = time.Now()
				}
				if opened.IsZero() && b.Mode() == cluster.MajorityMode {
					opened = time.Now()
				}
			}
			if closed.IsZero() || opened.IsZero() || !closed.Before(opened) {
				t.Errorf("a closed at %s and b opened at %s", closed, opened)
			}
			if v := b.View(); v.NextMaster.Epoch != 2 || v.Leader.Node != "b" || !v.Leader.Ready {
				t.Errorf("b sees %+v and %+v", v.NextMaster, v.Leader)
			}
			r := b.Report(t.Context())
			if !r.Open || r.State != cluster.Active || r.Epoch != 2 || r.Cluster != "story" || r.LagBytes == nil || len(r.History) != 2 || len(r.Services) != 2 {
				t.Errorf("b reports %+v", r)
			}
			if r := a.Report(t.Context()); r.Open || r.Epoch != 1 {
				t.Errorf("a reports %+v", r)
			}
		})
	}
}
