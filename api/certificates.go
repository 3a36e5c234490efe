package api

import (
	"context"
	"net/http"

	"github.com/understudy-ha/understudy/cluster"
)

// Certificates are those of the node that is asked. What it tells and signs is
// encoded as it is.
type Certificates interface {
	// Describe tells of the node's own and of the CA's.
	Describe() (any, error)
	// Renew has the node's own signed anew, and puts it to use.
	Renew(ctx context.Context) (any, error)
	// Trust has the node trust these CAs alone, with the key of one on a manager, and
	// puts that to use.
	Trust(ctx context.Context, cas, key []byte) error
	// Sign makes the certificate that a member asks for, as PEM, by a CSR.
	Sign(member cluster.Node, csr []byte) ([]byte, error)
	// KeepGossipKey keeps the key of Consul's gossip on the node.
	KeepGossipKey(key string) error
}

// GossipKeyRequest is the body of POST /api/v1/gossip-key.
type GossipKeyRequest struct {
	Key string `json:"key"`
}

// SignRequest is the body of POST /api/v1/certificates/sign.
type SignRequest struct {
	CSR []byte `json:"csr"`
}

// TrustRequest is the body of POST /api/v1/certificates/trust: the CAs, as PEM, the one
// that signs first, and the key of one of them, which a manager is given.
type TrustRequest struct {
	CAs []byte `json:"cas"`
	Key []byte `json:"key,omitempty"`
}

// SignReply answers it.
type SignReply struct {
	Certificate []byte `json:"certificate"`
}

func (b Backend) certificates(mux *http.ServeMux) {
	mux.Handle("GET /api/v1/certificates", b.members(func(w http.ResponseWriter, r *http.Request) {
		out, err := b.Certificates.Describe()
		if err != nil {
			fail(w, Errorf(http.StatusInternalServerError, CodeFailed, "%v", err))
			return
		}
		reply(w, http.StatusOK, out)
	}))
	mux.Handle("POST /api/v1/certificates/renew", b.members(func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, func(ctx context.Context, _ struct{}) (any, error) { return b.Certificates.Renew(ctx) })
	}))
	mux.Handle("POST /api/v1/certificates/trust", b.managers(func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, func(ctx context.Context, in TrustRequest) (any, error) {
			return struct{}{}, b.Certificates.Trust(ctx, in.CAs, in.Key)
		})
	}))
	mux.Handle("POST /api/v1/certificates/sign", b.members(func(w http.ResponseWriter, r *http.Request) {
		name, _ := b.Caller(r.TLS) // who asks is told by the certificate that it has
		answer(w, r, func(ctx context.Context, in SignRequest) (any, error) {
			member, known := b.View().Nodes[name]
			if !known {
				return nil, Errorf(http.StatusForbidden, CodeForbidden, "%s is not a member of the cluster", name)
			}
			cert, err := b.Certificates.Sign(member, in.CSR)
			return SignReply{cert}, err
		})
	}))
	mux.Handle("POST /api/v1/gossip-key", b.managers(func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, func(_ context.Context, in GossipKeyRequest) (any, error) {
			return struct{}{}, b.Certificates.KeepGossipKey(in.Key)
		})
	}))
}

// KeepGossipKey has the node keep the key of Consul's gossip.
func (c *Client) KeepGossipKey(ctx context.Context, n cluster.Node, key string) error {
	return c.call(ctx, http.MethodPost, n, "gossip-key", GossipKeyRequest{key}, nil)
}

// Certificates asks the node for its own and the CA's; out is decoded into.
func (c *Client) Certificates(ctx context.Context, n cluster.Node, out any) error {
	return c.call(ctx, http.MethodGet, n, "certificates", nil, out)
}

// Renew has the node renew its certificate; out is decoded into.
func (c *Client) Renew(ctx context.Context, n cluster.Node, out any) error {
	return c.call(ctx, http.MethodPost, n, "certificates/renew", struct{}{}, out)
}

// Trust has the node trust these CAs.
func (c *Client) Trust(ctx context.Context, n cluster.Node, cas, key []byte) error {
	return c.call(ctx, http.MethodPost, n, "certificates/trust", TrustRequest{cas, key}, nil)
}

// Sign asks a manager to sign this node's certificate.
func (c *Client) Sign(ctx context.Context, n cluster.Node, csr []byte) ([]byte, error) {
	var out SignReply
	err := c.call(ctx, http.MethodPost, n, "certificates/sign", SignRequest{csr}, &out)
	return out.Certificate, err
}
