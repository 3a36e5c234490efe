package cluster

import (
	"testing"
	"time"
)

// Each case is the life of a preferred primary, in minutes of one state after the
// other: N it is named as the active node, W it could take over, . it cannot. The
// hand-over is done where it is due, unless the case says that it fails.
func TestFailback(t *testing.T) {
	const settle = time.Minute
	for _, c := range []struct {
		name  string
		life  string
		fails bool
		due   int // the minute in which it is first due again; -1: never
	}{
		{"it comes back after a minute", "NNNNNNNNNNNN...WWW", false, 16},
		{"never well", "NNNNNNNNNNNN.......", false, -1},
		{"a break begins the wait anew", "NNNNNNNNNNNN.W.W.WW", false, 18},
		{"it did not stay for ten minutes", "NNNNN..WWWW", false, 9},
		{"a node that has just started knows nothing of before", "WW", false, 1},
		{"a hand-over that fails doubles the wait", "NNNNNNNNNNNN.WWWWWWW", true, 14},
	} {
		var f Failback
		due := []int{}
		now := time.Unix(1e9, 0)
		for minute, s := range c.life {
			var d bool
			if f, d = f.Next(now.Add(time.Duration(minute)*time.Minute), s == 'N', s == 'W', settle); !d {
				continue
			}
			due = append(due, minute)
			if !c.fails {
				break
			}
			f = f.Failed()
		}
		switch {
		case c.due < 0 && len(due) > 0, c.due >= 0 && (len(due) == 0 || due[0] != c.due):
			t.Errorf("%s: due in minutes %v, want %d", c.name, due, c.due)
		case c.fails && (len(due) != 2 || due[1] != due[0]+1+2):
			t.Errorf("%s: due in minutes %v", c.name, due)
		}
	}
}

// One that dies as soon as it is active comes back ever more seldom, at most every
// 64 waits, and as at first once it has stayed.
func TestFailbackNeverFlaps(t *testing.T) {
	const settle = time.Minute
	var f Failback
	now := time.Unix(1e9, 0)
	step := func(named, could bool) bool {
		now = now.Add(time.Second)
		var due bool
		f, due = f.Next(now, named, could, settle)
		return due
	}
	comesBack := func() time.Duration {
		step(true, false)
		step(false, false)
		began := now
		for !step(false, true) {
		}
		return now.Sub(began)
	}
	for round := 1; round <= 10; round++ {
		want := settle << min(round, 6)
		if took := comesBack(); took < want || took > want+2*time.Second {
			t.Errorf("round %d: back after %s, want %s", round, took, want)
		}
	}
	strikes := f.Strikes
	f = f.Named(now) // and passed over before anybody looked
	if step(false, true) || f.Strikes != strikes+1 {
		t.Errorf("named, and not for long: %+v", f)
	}
	step(true, false)
	now = now.Add(10 * settle)
	step(false, false)
	if f.Strikes != 0 {
		t.Errorf("after it has stayed: %+v", f)
	}
}
