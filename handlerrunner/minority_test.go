package handlerrunner

import (
	"testing"

	"github.com/understudy-ha/understudy/cluster"
)

// A node follows the one that serves its part only if nothing of its own WAL is in
// the way: else it would take that side for its own, and its rows would be rewound
// away without an export.
func TestLeadsOn(t *testing.T) {
	history := cluster.History{{Timeline: 1, LSN: 0x10}, {Timeline: 2, LSN: 0x37}}
	for _, tc := range []struct {
		name   string
		change func(there, own *cluster.Answer)
		want   bool
	}{
		{"on the line of the one that serves", func(_, _ *cluster.Answer) {}, true},
		{"beyond where it left the line", func(_, own *cluster.Answer) { own.Position.LSN = 0x3b }, false},
		{"it serves nobody", func(there, _ *cluster.Answer) { there.Serving = false }, false},
		{"it has not written its side down", func(there, _ *cluster.Answer) { there.Side = nil }, false},
		{"it is about to promote, where this one was", func(there, _ *cluster.Answer) {
			there.Position, there.History = cluster.Position{Timeline: 35, LSN: 0x3a}, history
		}, true},
		{"it is about to promote, and this one is further", func(there, own *cluster.Answer) {
			there.Position, there.History = cluster.Position{Timeline: 35, LSN: 0x3a}, history
			own.Position.LSN = 0x83
		}, false},
		{"on a timeline of the same number, which every election knows", func(there, _ *cluster.Answer) {
			there.Lines = []cluster.Line{{Timeline: 35, Epoch: 3}, {Timeline: 116, Epoch: 4}}
		}, false},
		{"on a timeline of the same number, of another promotion", func(there, own *cluster.Answer) {
			there.Lines, own.Lines = []cluster.Line{{Timeline: 35, Epoch: 3}}, []cluster.Line{{Timeline: 35, Epoch: 4}}
		}, false},
		{"of the same promotion", func(there, own *cluster.Answer) {
			there.Lines, own.Lines = []cluster.Line{{Timeline: 35, Epoch: 3}, {Timeline: 116, Epoch: 4}}, []cluster.Line{{Timeline: 35, Epoch: 3}}
		}, true},
	} {
		there := cluster.Answer{Serving: true, Side: &cluster.Side{Leader: "e"}, Position: cluster.Position{Timeline: 116, LSN: 0x3b},
			History: append(history[:2:2], cluster.Fork{Timeline: 35, LSN: 0x3a})}
		own := cluster.Answer{Position: cluster.Position{Timeline: 35, LSN: 0x3a}, History: history}
		tc.change(&there, &own)
		if got := leadsOn(there, own); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
