package registry

import (
	"testing"
	"time"
)

func TestNextIndex(t *testing.T) {
	for _, test := range []struct {
		what             string
		asked, got, want uint64
	}{
		{"first answer", 0, 7, 7},
		{"it moved on", 7, 9, 9},
		{"it stayed: perhaps a restore ended the poll", 7, 7, 0},
		{"it went back: the store was made anew", 7, 3, 0},
		{"no index at all must not end in a busy loop", 0, 0, 1},
	} {
		if got := nextIndex(test.asked, test.got); got != test.want {
			t.Errorf("%s: asked %d, got %d: next %d, want %d", test.what, test.asked, test.got, got, test.want)
		}
	}
}

// A long poll must end by itself before its deadline does.
func TestPollLimit(t *testing.T) {
	if got := pollLimit(0, time.Second); got != time.Second {
		t.Errorf("a read that does not wait has %s", got)
	}
	if got := pollLimit(1, time.Second); got <= pollFor+pollFor/16 {
		t.Errorf("a poll of %s has %s", pollFor, got)
	}
}
