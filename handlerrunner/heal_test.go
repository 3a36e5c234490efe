package handlerrunner

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// silentParts never answer.
type silentParts struct{ Parts }

func (silentParts) LastWrite(ctx context.Context, _ cluster.Node, _ cluster.LSN) (cluster.LastWrite, error) {
	<-ctx.Done()
	return cluster.LastWrite{}, ctx.Err()
}

// The driver of a node that hands over weighs by itself: a node that was cut off
// again must not hold it up for ever.
func TestWeighGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Handler{Options: Options{Node: "a", Parts: silentParts{}, Log: slog.New(slog.DiscardHandler)}}
		answers := []cluster.Answer{{Node: "b", Side: &cluster.Side{Leader: "b"}}}
		began := time.Now()
		h.weigh(context.Background(), cluster.View{}, answers)
		if took := time.Since(began); took > weighWithin+askWithin {
			t.Errorf("took %s, want at most %s", took, weighWithin+askWithin)
		}
		if answers[0].Last != nil {
			t.Errorf("b was last written at %v, want nothing known", answers[0].Last)
		}
	})
}
