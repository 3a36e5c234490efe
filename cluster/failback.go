package cluster

import "time"

// Failback is what a node remembers of the preferred primary, so that it becomes
// active again once it is well, and does not come and go. The zero value is the
// start; the values follow each other by Next.
type Failback struct {
	Well    time.Time // since when it could take over, without a break; zero: it cannot
	Served  time.Time // since when it is named as the active node; zero: it is not
	Strikes int       // how often in a row it did not stay, or a hand-over to it failed
}

const (
	// stayed is how many times the waiting time a preferred primary must have
	// been active to count as one that stays.
	stayed = 10
	// maxDoubling bounds the back-off: 64 times the waiting time.
	maxDoubling = 6
)

// Next takes in what is seen now: whether the preferred primary is named as the
// active node, and whether it could take over from the one that is. It says
// whether it is due: when it could without a break for settle, and for twice as
// long after each strike. One that was active for less than ten times settle
// strikes; one that was for longer begins anew.
func (f Failback) Next(now time.Time, named, could bool, settle time.Duration) (next Failback, due bool) {
	switch {
	case named && f.Served.IsZero():
		f.Served = now
	case !named && !f.Served.IsZero():
		if now.Sub(f.Served) < stayed*settle {
			f.Strikes++
		} else {
			f.Strikes = 0
		}
		f.Served = time.Time{}
	}
	if named || !could {
		f.Well = time.Time{}
		return f, false
	}
	if f.Well.IsZero() {
		f.Well = now
	}
	return f, now.Sub(f.Well) >= f.Wait(settle)
}

// Wait is how long the preferred primary must be well before it is due.
func (f Failback) Wait(settle time.Duration) time.Duration {
	return settle << min(f.Strikes, maxDoubling)
}

// Named takes in that the preferred primary has just been named. Whoever does that
// must not miss it where the name does not last.
func (f Failback) Named(now time.Time) Failback {
	f.Well, f.Served = time.Time{}, now
	return f
}

// Failed takes in that the hand-over has failed.
func (f Failback) Failed() Failback {
	f.Well = time.Time{}
	f.Strikes++
	return f
}
