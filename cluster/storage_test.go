package cluster

import "testing"

// The free space goes down and up again: the disk is full from one bound on and
// not full from the other on, and in between it is what it was.
func TestFull(t *testing.T) {
	full := false
	for _, step := range []struct {
		mega int64
		want bool
	}{{1000, false}, {100, false}, {64, false}, {63, true}, {0, true}, {64, true}, {127, true}, {128, false}, {64, false}, {10, true}} {
		if full = Full(step.mega<<20, full); full != step.want {
			t.Errorf("with %d MB free: full is %v", step.mega, full)
		}
	}
}
