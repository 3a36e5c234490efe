package helper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/pgrepl/divergence"
)

// Client asks the helper. Its methods are those of pgrepl.Server, with the same
// errors; beside them the error may wrap ErrUnreachable. They may be called from
// several goroutines.
type Client struct{ socket string }

// NewClient returns a client of the helper that listens on a Unix socket.
func NewClient(socket string) *Client { return &Client{socket} }

// lastWord is how long a caller that gives up waits to be told that what it has
// asked for has ended. A helper that is frozen must not hold it up.
const lastWord = 5 * time.Second

// call asks for a verb, and waits for its end.
func call[R any](ctx context.Context, c *Client, verb string, args any, progress func(string)) (result R, err error) {
	lost := func(err error) (R, error) {
		if cut := ctx.Err(); cut != nil {
			err = cut
		}
		return result, fmt.Errorf("%s: %w: %w", verb, ErrUnreachable, err)
	}
	text, err := json.Marshal(args)
	if err != nil {
		return result, fmt.Errorf("%s: %w", verb, err)
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return lost(err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() {
		_ = conn.(*net.UnixConn).CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(lastWord))
	})()
	if err := json.NewEncoder(conn).Encode(request{verb, text}); err != nil {
		return lost(err)
	}
	in := json.NewDecoder(bufio.NewReader(conn))
	for {
		var r response
		if err := in.Decode(&r); err != nil {
			return lost(err)
		}
		if !r.Done {
			progress(r.Progress)
			continue
		}
		if len(r.Result) > 0 {
			err = json.Unmarshal(r.Result, &result)
		}
		if r.Error != "" {
			err = &remote{r.Error, r.Kinds}
		}
		return result, err
	}
}

func quiet(string) {}

// tell is call for what has no result.
func tell(ctx context.Context, c *Client, verb string, args any, progress func(string)) error {
	_, err := call[none](ctx, c, verb, args, progress)
	return err
}

// Observe looks at the server: see pgrepl.Server.Observe. Of a helper that does not
// answer nothing is known.
func (c *Client) Observe(ctx context.Context) pgrepl.Observation {
	o, err := call[pgrepl.Observation](ctx, c, "observe", none{}, quiet)
	if err != nil {
		return pgrepl.Observation{Problem: err.Error()}
	}
	return o
}

// Promote makes the standby a primary.
func (c *Client) Promote(ctx context.Context) (cluster.Position, error) {
	return call[cluster.Position](ctx, c, "promote", none{}, quiet)
}

// Checkpoint takes a checkpoint at once.
func (c *Client) Checkpoint(ctx context.Context) error {
	return tell(ctx, c, "checkpoint", none{}, quiet)
}

// SetQuorum sets whom commits wait for, and sees it in effect.
func (c *Client) SetQuorum(ctx context.Context, q cluster.Quorum) error {
	return tell(ctx, c, "set-quorum", q, quiet)
}

// Gate lets clients in, or ends their sessions and keeps them out.
func (c *Client) Gate(ctx context.Context, open bool) error {
	return tell(ctx, c, "gate", open, quiet)
}

// Detach ends the reception of WAL and returns the final position.
func (c *Client) Detach(ctx context.Context) (cluster.Position, error) {
	return call[cluster.Position](ctx, c, "detach", none{}, quiet)
}

// Follow points the server at an upstream.
func (c *Client) Follow(ctx context.Context, up pgrepl.Upstream) error {
	return tell(ctx, c, "follow", up, quiet)
}

// EnsureSlots keeps a replication slot for each of the nodes.
func (c *Client) EnsureSlots(ctx context.Context, t cluster.Tenure, nodes []string) error {
	return tell(ctx, c, "slots", slots{t, nodes}, quiet)
}

// History returns the ancestors of a timeline.
func (c *Client) History(ctx context.Context, tl cluster.Timeline) (cluster.History, error) {
	return call[cluster.History](ctx, c, "history", tl, quiet)
}

// Complete says whether the data directory is a whole copy of the database.
func (c *Client) Complete(ctx context.Context) (bool, error) {
	return call[bool](ctx, c, "complete", none{}, quiet)
}

// ControlData reads pg_control.
func (c *Client) ControlData(ctx context.Context) (pgrepl.ControlData, error) {
	return call[pgrepl.ControlData](ctx, c, "control-data", none{}, quiet)
}

// Rewind makes the data directory fit to follow an upstream.
func (c *Client) Rewind(ctx context.Context, from pgrepl.Upstream, progress func(string)) error {
	return tell(ctx, c, "rewind", from, progress)
}

// Clone replaces the data directory by a copy of an upstream's.
func (c *Client) Clone(ctx context.Context, from pgrepl.Upstream, progress func(string)) error {
	return tell(ctx, c, "clone", from, progress)
}

// LastCommit is when data was last changed after an LSN, and where.
func (c *Client) LastCommit(ctx context.Context, after cluster.LSN) (time.Time, cluster.LSN, error) {
	r, err := call[commit](ctx, c, "last-commit", after, quiet)
	return r.At, r.LSN, err
}

// SkipTimelines makes the next promotion pass over n timelines.
func (c *Client) SkipTimelines(ctx context.Context, n int) error {
	return tell(ctx, c, "skip-timelines", n, quiet)
}

// KeepDivergence makes a primary keep its row changes from now on.
func (c *Client) KeepDivergence(ctx context.Context) error {
	return tell(ctx, c, "keep-divergence", none{}, quiet)
}

// AdvanceDivergence lets go of the row changes up to an LSN.
func (c *Client) AdvanceDivergence(ctx context.Context, to cluster.LSN) error {
	return tell(ctx, c, "advance-divergence", to, quiet)
}

// Export writes down what was committed after a fork, in the host's own folder.
func (c *Client) Export(ctx context.Context, r pgrepl.ExportRequest) (divergence.Summary, error) {
	return call[divergence.Summary](ctx, c, "export", r, quiet)
}

// SetAside records what Export could not write down, and why.
func (c *Client) SetAside(ctx context.Context, r pgrepl.ExportRequest, why error) (divergence.Summary, error) {
	return call[divergence.Summary](ctx, c, "set-aside", aside{r, why.Error()}, quiet)
}

// InstallCertificates has the server use the node's present certificates.
func (c *Client) InstallCertificates(ctx context.Context) error {
	return tell(ctx, c, "install-certificates", none{}, quiet)
}

// OpenDrill and CloseDrill make and drop what a drill writes to.
func (c *Client) OpenDrill(ctx context.Context) error {
	return tell(ctx, c, "open-drill", none{}, quiet)
}

// CloseDrill drops what OpenDrill has made.
func (c *Client) CloseDrill(ctx context.Context) error {
	return tell(ctx, c, "close-drill", none{}, quiet)
}

// askAgain is how long Probe waits for a helper that is being started again.
const askAgain = 100 * time.Millisecond

// Probe writes a block to the disk of the data directory and returns how many bytes
// are free there. It hangs where the disk does, and while there is no helper, of
// which it is not known either whether it could write.
func (c *Client) Probe(ctx context.Context) (free int64, err error) {
	for {
		free, err = call[int64](ctx, c, "probe", none{}, quiet)
		if !errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
			return free, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(askAgain):
		}
	}
}
