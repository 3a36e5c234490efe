package handlerrunner

import (
	"context"
	"sync"

	"github.com/understudy-ha/understudy/cluster"
)

// job is the one long action under way. The driver goes on observing beside it,
// and cancels it when the node is called to something else.
type job struct {
	wake func() // has the driver look around

	mu    sync.Mutex
	name  cluster.Action // empty: none is under way
	stop  context.CancelFunc
	done  chan struct{}
	ended int // how many have
	asked int // how many had when the driver last observed
}

// observe has start take what is decided from now on for new.
func (j *job) observe() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.asked = j.ended
}

// start runs do in the background, unless a job is under way, or has ended since
// observe: what was decided may not be so any more. then, if any, gets its result, unless
// it was cancelled, and the driver is woken.
func (j *job) start(ctx context.Context, name cluster.Action, do func(context.Context) error, then func(error)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.name != "" || j.ended != j.asked {
		return
	}
	ctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	j.name, j.stop, j.done = name, stop, done
	go func() {
		defer close(done)
		err := do(ctx)
		told := then != nil && ctx.Err() == nil
		if told {
			then(err)
		}
		stop()
		j.mu.Lock()
		j.name = ""
		j.ended++
		j.mu.Unlock()
		if told {
			j.wake() // not before: what the driver decides now may be started
		}
	}()
}

// does says that this job is under way.
func (j *job) does(name cluster.Action) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.name == name
}

// cancel ends the job under way and waits until it has ended.
func (j *job) cancel() {
	j.mu.Lock()
	stop, done := j.stop, j.done
	j.mu.Unlock()
	if stop != nil {
		stop()
		<-done
	}
}

// latch is a lock that may be held for as long as PostgreSQL takes to answer. It
// is a channel of capacity 1, because testing/synctest lets time pass while a
// channel is waited for, and not while a sync.Mutex is.
type latch chan struct{}

// Lock waits until the latch is free and takes it.
func (l latch) Lock() { l <- struct{}{} }

// Unlock frees it.
func (l latch) Unlock() { <-l }
