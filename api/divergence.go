package api

import (
	"context"
	"io"
	"net/http"
	"strconv"

	"github.com/understudy-ha/understudy/cluster"
)

// Divergences are the exports that a node holds.
type Divergences interface {
	// List returns their summaries, to be told as JSON.
	List() (any, error)
	// Open returns the changes of one, as lines of JSON, and their length.
	Open(id string) (io.ReadCloser, int64, error)
}

// divergences tells other members what this node holds.
func (b Backend) divergences(mux *http.ServeMux) {
	mux.Handle("GET /api/v1/divergence", b.members(func(w http.ResponseWriter, r *http.Request) {
		list, err := b.Divergences.List()
		if err != nil {
			fail(w, Errorf(http.StatusInternalServerError, CodeFailed, "%v", err))
			return
		}
		reply(w, http.StatusOK, list)
	}))
	mux.Handle("GET /api/v1/divergence/{id}/changes", b.members(func(w http.ResponseWriter, r *http.Request) {
		f, size, err := b.Divergences.Open(r.PathValue("id"))
		if err != nil {
			fail(w, Errorf(http.StatusNotFound, CodeNotFound, "%v", err))
			return
		}
		defer f.Close()
		w.Header().Set("Content-Type", "application/jsonl")
		// The reader sees by it when this was not all.
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		_, _ = io.Copy(w, f)
	}))
}

// Divergences asks which exports the node holds; out gets a list of summaries.
func (c *Client) Divergences(ctx context.Context, n cluster.Node, out any) error {
	return c.call(ctx, http.MethodGet, n, "divergence", nil, out)
}

// DivergenceChanges reads the changes of an export that the node holds. The
// caller closes what is returned; an answer that is cut off is an error of Read.
func (c *Client) DivergenceChanges(ctx context.Context, n cluster.Node, id string) (io.ReadCloser, error) {
	host := hostPort(n.Address, n.Ports.API)
	return c.open(ctx, "https://"+host+"/api/v1/divergence/"+id+"/changes", n.Name+" ("+host+")")
}
