package api

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/understudy-ha/understudy/cluster"
)

// Admitter lets new members in.
type Admitter interface {
	// Admit checks the token, registers the node and signs its certificate.
	// Errors are *Error.
	Admit(ctx context.Context, r JoinRequest) (JoinReply, error)
}

// Voter takes part in elections.
type Voter interface {
	// Detach answers the election that the node by holds.
	Detach(ctx context.Context, by string, epoch cluster.Epoch, seen uint64) (cluster.Answer, error)
	// Lend lets the node to take this one's WAL, which has promised the epoch.
	Lend(ctx context.Context, to string, epoch cluster.Epoch) (cluster.Loan, error)
	Vouch(ctx context.Context, active string, epoch cluster.Epoch) (renewed bool, err error)
	// Rally tells a node of the same part that is cut off where this one stands.
	Rally(ctx context.Context) (cluster.Answer, error)
	// Claim hears a node whose part was cut off. An *Error with CodeKept is final.
	Claim(ctx context.Context, a cluster.Answer) error
	LastWrite(ctx context.Context, after cluster.LSN) (cluster.LastWrite, error)
}

// Backend is what the API serves.
type Backend struct {
	Node  Node
	Voter Voter
	Admit Admitter
	View  func() cluster.View // from memory
	// Divergences are the exports on this node.
	Divergences Divergences
	// Drill makes, or drops, what the writer of a drill needs on the active node.
	Drill func(ctx context.Context, open bool) error
	// Certificates are this node's.
	Certificates Certificates
	// Caller tells whose verified certificate a connection carries.
	Caller func(*tls.ConnectionState) (name string, ok bool)
}

const maxBody = 1 << 20

// Handler is the API. Everything but joining asks for the certificate of a
// member.
func Handler(b Backend) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v1/join", func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, func(ctx context.Context, in JoinRequest) (any, error) { return b.Admit.Admit(ctx, in) })
	})
	mux.Handle("GET /api/v1/ping", b.members(func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusOK, struct{}{})
	}))
	mux.Handle("GET /api/v1/node", b.members(func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusOK, b.Node.Report(r.Context()))
	}))
	mux.Handle("POST /api/v1/detach", b.managers(func(w http.ResponseWriter, r *http.Request) {
		by, _ := b.Caller(r.TLS)
		answer(w, r, func(ctx context.Context, in DetachRequest) (any, error) {
			return b.Voter.Detach(ctx, by, in.Epoch, in.Seen)
		})
	}))
	mux.Handle("POST /api/v1/lend", b.managers(func(w http.ResponseWriter, r *http.Request) {
		to, _ := b.Caller(r.TLS)
		answer(w, r, func(ctx context.Context, in LendRequest) (any, error) { return b.Voter.Lend(ctx, to, in.Epoch) })
	}))
	mux.Handle("POST /api/v1/vouch", b.managers(func(w http.ResponseWriter, r *http.Request) {
		active, _ := b.Caller(r.TLS)
		answer(w, r, func(ctx context.Context, in VouchRequest) (any, error) {
			renewed, err := b.Voter.Vouch(ctx, active, in.Epoch)
			return VouchReply{renewed}, err
		})
	}))
	mux.Handle("POST /api/v1/rally", b.managers(func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, func(ctx context.Context, _ struct{}) (any, error) { return b.Voter.Rally(ctx) })
	}))
	mux.Handle("POST /api/v1/claim", b.managers(func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, func(ctx context.Context, in cluster.Answer) (any, error) {
			in.Node, _ = b.Caller(r.TLS)
			return struct{}{}, b.Voter.Claim(ctx, in)
		})
	}))
	mux.Handle("POST /api/v1/force", b.members(func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, func(ctx context.Context, _ struct{}) (any, error) { return struct{}{}, b.Node.Force(ctx) })
	}))
	mux.Handle("POST /api/v1/last-write", b.managers(func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, func(ctx context.Context, in LastWriteRequest) (any, error) { return b.Voter.LastWrite(ctx, in.After) })
	}))
	mux.Handle("POST /api/v1/set-active", b.members(b.activeOnly(func(w http.ResponseWriter, r *http.Request) {
		by, _ := b.Caller(r.TLS)
		answer(w, r, func(ctx context.Context, in SetActiveRequest) (any, error) {
			if in.Check {
				return struct{}{}, b.Node.MayHandOver(ctx, in.Node)
			}
			return struct{}{}, b.Node.HandOver(ctx, in.Node, cmp.Or(in.Why, "asked for by an operator")+", on "+by)
		})
	})))
	mux.Handle("POST /api/v1/drill", b.managers(b.activeOnly(func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, func(ctx context.Context, in DrillRequest) (any, error) { return struct{}{}, b.Drill(ctx, in.Open) })
	})))
	b.divergences(mux)
	b.certificates(mux)
	mux.HandleFunc("/", notFound)
	return mux
}

// DetachRequest is the body of POST /api/v1/detach; the reply is a
// cluster.Answer.
type DetachRequest struct {
	Epoch cluster.Epoch `json:"epoch"`
	Seen  uint64        `json:"seen"` // index at which the leader key was free
}

// LendRequest is the body of POST /api/v1/lend, of a node that could be active in
// that epoch if it had the WAL of the one that it asks; the reply is a cluster.Loan.
type LendRequest struct {
	Epoch cluster.Epoch `json:"epoch"`
}

// VouchRequest is the body of POST /api/v1/vouch: the caller is active in that
// epoch, and Consul does not hear it.
type VouchRequest struct {
	Epoch cluster.Epoch `json:"epoch"`
}

// VouchReply says that the node stands by the caller, and whether Consul has let it
// renew the caller's session.
type VouchReply struct {
	Renewed bool `json:"renewed"`
}

// LastWriteRequest is the body of POST /api/v1/last-write; the reply is a
// cluster.LastWrite.
type LastWriteRequest struct {
	After cluster.LSN `json:"after"`
}

// SetActiveRequest is the body of POST /api/v1/set-active.
type SetActiveRequest struct {
	Node  string `json:"node"`            // empty: the best standby
	Check bool   `json:"check,omitempty"` // only say whether it would be refused
	Why   string `json:"why,omitempty"`   // for the history; empty: an operator asked
}

// DrillRequest is the body of POST /api/v1/drill.
type DrillRequest struct {
	Open bool `json:"open"` // false: drop it
}

// members lets only callers through whose certificate names a present member:
// a certificate outlives the membership of its node. A node that has not heard of
// the cluster yet, as right after it has joined, knows nobody, and lets all through.
func (b Backend) members(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, ok := b.Caller(r.TLS)
		if !ok {
			fail(w, Errorf(http.StatusForbidden, CodeForbidden, "a certificate of a member is needed"))
			return
		}
		view := b.View()
		if _, removed := view.Removed[name]; removed {
			fail(w, Errorf(http.StatusForbidden, CodeRemoved, "%s was removed from the cluster", name))
			return
		}
		if _, present := view.Nodes[name]; !present && view.Info != nil {
			fail(w, Errorf(http.StatusForbidden, CodeForbidden, "%s is not a member of the cluster, as far as this node knows", name))
			return
		}
		next(w, r)
	})
}

// managers is members without runners, which have no part in elections.
func (b Backend) managers(next http.HandlerFunc) http.Handler {
	return b.members(func(w http.ResponseWriter, r *http.Request) {
		if name, _ := b.Caller(r.TLS); b.View().Nodes[name].Kind == cluster.Runner {
			fail(w, Errorf(http.StatusForbidden, CodeForbidden, "%s is a runner and holds no elections", name))
			return
		}
		next(w, r)
	})
}

// answer decodes a body, calls do and encodes what it returns.
func answer[In any](w http.ResponseWriter, r *http.Request, do func(context.Context, In) (any, error)) {
	var in In
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		fail(w, Errorf(http.StatusBadRequest, CodeBadRequest, "the body cannot be read: %v", err))
		return
	}
	if _, err := dec.Token(); err != io.EOF {
		fail(w, Errorf(http.StatusBadRequest, CodeBadRequest, "the body has more than one value"))
		return
	}
	out, err := do(r.Context(), in)
	var known *Error
	switch {
	case errors.As(err, &known):
		fail(w, known)
	case err != nil:
		fail(w, Errorf(http.StatusConflict, CodeFailed, "%v", err))
	default:
		reply(w, http.StatusOK, out)
	}
}
