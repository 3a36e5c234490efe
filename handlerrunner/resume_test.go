package handlerrunner

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/statefile"
)

// silentLocks never answers.
type silentLocks struct{ Locks }

func (silentLocks) Adopt(ctx context.Context, _ cluster.Epoch) (Lease, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

type noJournal struct{}

func (noJournal) Write(string, cluster.Epoch, string, any) {}

// A handler that was killed while it was active does not wait for long to hear
// whether it still is: PostgreSQL may be open without a lease.
func TestResumeDoesNotWaitForASilentRegistry(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.json")
	if err := statefile.Write(file, durable{State: cluster.Active, Tried: 3}); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		h, err := New(Options{Node: "a", State: file, Locks: silentLocks{}, Journal: noJournal{}, Hold: func(time.Time) {}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		h.resume(t.Context())
		if took := time.Since(began); took != leaseTTL {
			t.Errorf("gave up after %s, want %s", took, leaseTTL)
		}
		if _, d, _ := h.snapshot(); d.State != cluster.Fenced {
			t.Errorf("is %s, want fenced", d.State)
		}
	})
}

// silentLease is renewed, and cannot be given back.
type silentLease struct{ scriptedLease }

func (*silentLease) Release(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// A lock whose release is not answered does not keep the driver for longer than
// the session can live.
func TestTenureEndsWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, _ := begun(&silentLease{scriptedLease{renew: func(context.Context) error { return nil }}}, time.Now())
		began := time.Now()
		x.end(t.Context())
		if took := time.Since(began); took != 2*leaseTTL {
			t.Errorf("took %s, want %s", took, 2*leaseTTL)
		}
	})
}

// Where Consul was silent until the lease was over, the session is about to end by
// itself, and the release is given up sooner.
func TestTenureEndsWhileConsulIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, woken := begun(&silentLease{scriptedLease{renew: func(context.Context) error { return errors.New("no leader") }}}, time.Now())
		<-woken
		began := time.Now()
		x.end(t.Context())
		if took := time.Since(began); took != leaseTTL/2 {
			t.Errorf("took %s, want %s", took, leaseTTL/2)
		}
	})
}

// A promise that the disk has refused is not given when it is asked for again.
func TestPromiseIsKeptBeforeItIsGiven(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	h, err := New(Options{Node: "a", State: filepath.Join(dir, "a.json"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "a file where the folder should be")
	for range 2 {
		if e, err := h.promise(7, 1); err == nil {
			t.Errorf("promised epoch %d without a disk", e)
		}
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if e, err := h.promise(7, 1); e != 7 || err != nil {
		t.Errorf("promised epoch %d, %v, want 7", e, err)
	}
	again, err := New(Options{Node: "a", State: h.State, Log: h.Log})
	if err != nil {
		t.Fatal(err)
	}
	if got := again.durable.Promise; got != 7 {
		t.Errorf("the next run knows of epoch %d, want 7", got)
	}
}
