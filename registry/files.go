package registry

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/consul/api"

	"github.com/understudy-ha/understudy/cluster"
)

const keyFiles = "understudy-files/active"

// PublishFiles tells the others how far the active node's folders have come. A
// report of an earlier epoch than the one that is there is refused with
// ErrSuperseded.
func (c *Client) PublishFiles(ctx context.Context, r cluster.FilesReport) error {
	return c.modify(ctx, keyFiles, func(old *api.KVPair) ([]byte, error) {
		var there cluster.FilesReport
		if old != nil {
			if err := decode(old, &there); err != nil && !errors.Is(err, ErrMalformed) {
				return nil, err
			}
		}
		if there.Epoch > r.Epoch {
			return nil, fmt.Errorf("publish files of epoch %d: %w, epoch %d", r.Epoch, ErrSuperseded, there.Epoch)
		}
		return encode(r), nil
	})
}

// Files returns what the active node published last. ok is false while nobody
// has published anything.
func (c *Client) Files(ctx context.Context) (r cluster.FilesReport, ok bool, err error) {
	pair, err := c.get(ctx, keyFiles)
	if err != nil || pair == nil {
		return r, false, err
	}
	return r, true, decode(pair, &r)
}
