// Package helper has one process do what only PostgreSQL's own system user may do:
// write its configuration, signal its processes, and clone, rewind and export its
// data directory. handler-runner and check-runner run as a user who may do nothing
// of that. They ask the helper over a Unix socket, with one of a fixed list of verbs
// whose arguments name no path: where everything is, the helper reads from the
// configuration of the host, as they do.
//
// Whoever may connect is said by the owner and the mode of the socket alone. Each
// call is a connection of its own: a request, any number of lines of progress, and
// an answer. A caller that gives up closes its half of the connection. The helper
// then ends what it was doing, as it does when the caller dies.
package helper

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/understudy-ha/understudy/pgrepl"
)

// ErrUnreachable: no helper answers. Whether it did anything is not known.
var ErrUnreachable = errors.New("postgres-helper does not answer")

type request struct {
	Verb string          `json:"verb"`
	Args json.RawMessage `json:"args,omitempty"`
}

// response is a line of progress, or, with Done, the answer.
type response struct {
	Progress string          `json:"progress,omitempty"`
	Done     bool            `json:"done,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    string          `json:"error,omitempty"`
	Kinds    []string        `json:"kinds,omitempty"` // of kinds: what the error wraps
}

// kinds are the errors that callers tell apart, also across the socket.
var kinds = map[string]error{
	"not-running": pgrepl.ErrNotRunning,
	"starting":    pgrepl.ErrStarting,
	"stopping":    pgrepl.ErrStopping,
	"running":     pgrepl.ErrRunning,
	"standby":     pgrepl.ErrStandby,
	"not-standby": pgrepl.ErrNotStandby,
	"overridden":  pgrepl.ErrOverridden,
	"rewinding":   pgrepl.ErrRewinding,
	"busy":        pgrepl.ErrBusy,
	"no-space":    pgrepl.ErrNoSpace,
	"recovering":  pgrepl.ErrRecovering,
	"foreign":     pgrepl.ErrForeign,
	"canceled":    context.Canceled,
	"deadline":    context.DeadlineExceeded,
}

func kindsOf(err error) (names []string) {
	for name, kind := range kinds {
		if errors.Is(err, kind) {
			names = append(names, name)
		}
	}
	return names
}

// remote is an error that the helper has met.
type remote struct {
	text  string
	kinds []string
}

func (r *remote) Error() string { return r.text }

func (r *remote) Unwrap() (wrapped []error) {
	for _, k := range r.kinds {
		if err := kinds[k]; err != nil {
			wrapped = append(wrapped, err)
		}
	}
	return wrapped
}
