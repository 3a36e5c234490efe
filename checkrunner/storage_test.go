package checkrunner

import (
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// disk is the disk of the database by hand.
type disk struct {
	mu      sync.Mutex
	free    int64
	err     error
	hangs   chan struct{} // not nil: looks end when it is closed
	looks   int           // under way
	most    int           // of them at the same time
	reports []cluster.StorageReport
}

func (d *disk) look() (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looks++
	d.most = max(d.most, d.looks)
	if hangs := d.hangs; hangs != nil {
		d.mu.Unlock()
		<-hangs
		d.mu.Lock()
	}
	d.looks--
	return d.free, d.err
}

func (d *disk) report(r cluster.StorageReport) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reports = append(d.reports, r)
	return nil
}

func (d *disk) set(change func(*disk)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(d)
}

// last is what was posted and reported last.
func (b *bench) last(t *testing.T) (post, string) {
	t.Helper()
	posts := b.agent.since(cluster.CheckStorage, 0)
	b.disk.mu.Lock()
	defer b.disk.mu.Unlock()
	if len(posts) == 0 || len(b.disk.reports) == 0 {
		t.Fatalf("%d posts, %d reports", len(posts), len(b.disk.reports))
	}
	return posts[len(posts)-1], b.disk.reports[len(b.disk.reports)-1].Problem
}

// The disk fills up, gets a little room, refuses writes, and is well again.
func TestStorage(t *testing.T) {
	during(t, asIs, func(b *bench) {
		for _, step := range []struct {
			change func(*disk)
			ok     bool
			output string
		}{
			{func(*disk) {}, true, "takes writes, 10240 MB are free"},
			{func(d *disk) { d.free = 65 << 20 }, true, "takes writes, 65 MB are free"},
			{func(d *disk) { d.free = 5 << 20 }, false, "is full: 5 MB are free"},
			{func(d *disk) { d.free = 100 << 20 }, false, "is full: 100 MB are free"},
			{func(d *disk) { d.err = &os.PathError{Op: "write", Err: syscall.ENOSPC} }, false, "takes no writes: no space left on device"},
			{func(d *disk) { d.err = syscall.EROFS }, false, "takes no writes: read-only file system"},
			{func(d *disk) { d.err = nil }, false, "is full: 100 MB are free"},
			{func(d *disk) { d.free = 200 << 20 }, true, "takes writes, 200 MB are free"},
		} {
			b.disk.set(step.change)
			wait(4 * time.Second)
			p, problem := b.last(t)
			if p.ok != step.ok || p.output != step.output || step.ok != (problem == "") {
				t.Errorf("%+v and %q, want %v %q", p, problem, step.ok, step.output)
			}
		}
	})
}

// A disk hangs for a moment, then for long: the check fails when its TTL is over,
// the other checks go on, and no second write is begun.
func TestHangingDisk(t *testing.T) {
	during(t, asIs, func(b *bench) {
		hang := func() { b.disk.set(func(d *disk) { d.hangs = make(chan struct{}) }) }
		release := func() { b.disk.set(func(d *disk) { close(d.hangs); d.hangs = nil }) }
		wait(10 * time.Second)
		hang()
		wait(6 * time.Second)
		if p, problem := b.last(t); !p.ok || problem != "" {
			t.Errorf("within the TTL: %+v, %q", p, problem)
		}
		release()
		wait(10 * time.Second)
		if p, problem := b.last(t); !p.ok || problem != "" {
			t.Errorf("after a moment: %+v, %q", p, problem)
		}
		hang()
		wait(20 * time.Second)
		if p, problem := b.last(t); p.ok || !strings.HasPrefix(p.output, "hangs: a write has not ended for ") || problem != p.output {
			t.Errorf("after the TTL: %+v, %q", p, problem)
		}
		port := b.agent.since(cluster.CheckPort, time.Since(b.agent.start)-5*time.Second)
		if len(port) == 0 || !port[0].ok {
			t.Errorf("the port was held up: %v", port)
		}
		release()
		wait(2 * time.Second)
		if p, problem := b.last(t); !p.ok || problem != "" {
			t.Errorf("released: %+v, %q", p, problem)
		}
		if b.disk.most != 1 {
			t.Errorf("%d writes at the same time", b.disk.most)
		}
	})
}
