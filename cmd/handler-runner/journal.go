package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/registry"
)

// journal writes events to the registry in the background, in order, so that
// nothing that is urgent waits for its history.
type journal struct {
	reg   *registry.Client
	node  string
	log   *slog.Logger
	queue chan cluster.Event
}

// queueLength is more than a node says in a registry outage; what does not fit
// is in the log.
const queueLength = 256

func newJournal(reg *registry.Client, node string, log *slog.Logger) *journal {
	return &journal{reg, node, log, make(chan cluster.Event, queueLength)}
}

// Write queues an event with the time of now.
func (j *journal) Write(kind string, epoch cluster.Epoch, message string, data any) {
	e := cluster.Event{At: time.Now(), Node: j.node, Epoch: epoch, Kind: kind, Message: message}
	if data != nil {
		text, err := json.Marshal(data)
		if err != nil {
			j.log.Error("event not encoded", "kind", kind, "error", err)
		}
		e.Data = text
	}
	j.log.Info(message, "event", kind, "epoch", epoch)
	select {
	case j.queue <- e:
	default:
		j.log.Warn("event not kept: the registry cannot be written", "kind", kind)
	}
}

const retryEvent = time.Second

func (j *journal) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-j.queue:
			for ctx.Err() == nil {
				if _, err := j.reg.AppendEvent(ctx, e); err == nil {
					break
				}
				select {
				case <-ctx.Done():
				case <-time.After(retryEvent):
				}
			}
		}
	}
}
