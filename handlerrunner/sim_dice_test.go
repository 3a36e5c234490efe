package handlerrunner

import "time"

// dice are random numbers that follow from a seed alone (splitmix64).
type dice struct{ state uint64 }

func (d *dice) next() uint64 {
	d.state += 0x9e3779b97f4a7c15
	z := d.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// below returns a number from 0 to n-1.
func (d *dice) below(n int) int { return int(d.next() % uint64(n)) }

// upTo returns a time below t, to the nanosecond: no two things happen at once.
func (d *dice) upTo(t time.Duration) time.Duration { return time.Duration(d.next() % uint64(t)) }

func (d *dice) between(least, most time.Duration) time.Duration {
	return least + d.upTo(most-least)
}

func (d *dice) chance(p float64) bool { return float64(d.next()>>11)/(1<<53) < p }

// diceOf are dice for one purpose: who throws them first does not matter to the
// others.
func diceOf(seed uint64, purpose string, n uint64) *dice {
	h := uint64(14695981039346656037)
	for i := range len(purpose) {
		h = (h ^ uint64(purpose[i])) * 1099511628211
	}
	d := &dice{seed ^ h}
	d.state = d.next() ^ n
	d.next()
	return d
}
