package cli

import (
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/cluster"
)

func TestLacks(t *testing.T) {
	at := func(lsn cluster.LSN) cluster.Position { return cluster.Position{Timeline: 2, LSN: lsn} }
	for name, c := range map[string]struct {
		kind cluster.Kind
		r    cluster.Report
		want string // empty: it has everything
	}{
		"the active node":                  {cluster.Manager, cluster.Report{Open: true, Position: at(120), Files: cluster.Yes}, ""},
		"a standby that has it all":        {cluster.Manager, cluster.Report{Streaming: true, Position: at(100), Files: cluster.Yes}, ""},
		"a standby behind":                 {cluster.Manager, cluster.Report{Streaming: true, Position: at(70), Files: cluster.Yes}, "is 30 bytes behind"},
		"a standby that lacks a file":      {cluster.Manager, cluster.Report{Streaming: true, Position: at(100), Files: cluster.No}, "every file"},
		"a standby that does not know yet": {cluster.Manager, cluster.Report{Streaming: true, Position: at(100)}, "every file"},
		"one that is mended":               {cluster.Manager, cluster.Report{State: cluster.Rejoining, Position: at(100), Files: cluster.Yes}, "is rejoining"},
		"a runner":                         {cluster.Runner, cluster.Report{Files: cluster.Yes}, ""},
		"a runner that lacks a file":       {cluster.Runner, cluster.Report{Files: cluster.No}, "every file"},
	} {
		if got := lacks(c.kind, c.r, 100); got == "" != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
