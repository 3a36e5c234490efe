package checkrunner

import (
	"context"
	"fmt"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// storage looks whether the disk of the database takes writes. The look is taken
// by a goroutine of its own, because on a disk that hangs it does not return, and
// cannot be ended either.
func (r *runner) storage() measurement {
	type look struct {
		free int64
		err  error
	}
	var pending chan look // nil: none is under way
	var began time.Time
	var full bool
	return func(ctx context.Context) finding {
		if pending == nil {
			pending, began = make(chan look, 1), time.Now()
			go func(done chan<- look) {
				free, err := r.Disk()
				done <- look{free, err}
			}(pending)
		}
		var f finding
		select {
		case l := <-pending:
			pending = nil
			if l.err == nil {
				full = cluster.Full(l.free, full)
			}
			f = judgeStorage(l.free, full, l.err)
		case <-ctx.Done():
			f = judgeHanging(time.Since(began), r.ttl(cluster.CheckStorage))
		}
		report := cluster.StorageReport{At: time.Now()}
		if f.health == bad {
			report.Problem = f.text
		}
		if err := r.Storage(report); err != nil {
			r.Logger.Warn("storage report not written", "error", err)
		}
		return f
	}
}

func judgeStorage(free int64, full bool, err error) finding {
	switch {
	case err != nil:
		return finding{bad, "takes no writes: " + because(context.Background(), err)}
	case full:
		return finding{bad, fmt.Sprintf("is full: %d MB are free", free>>20)}
	}
	return finding{good, fmt.Sprintf("takes writes, %d MB are free", free>>20)}
}

// judgeHanging judges a write that has not ended. A busy disk may take its time.
func judgeHanging(lasts, ttl time.Duration) finding {
	text := fmt.Sprintf("hangs: a write has not ended for %s", lasts.Round(time.Second))
	if lasts < ttl {
		return finding{wavering, text}
	}
	return finding{bad, text}
}
