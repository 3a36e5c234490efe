// Package api is what a node says over HTTP: the status that load balancers
// ask for, and the API between nodes and for operators, over mutual TLS.
package api

import (
	"fmt"

	"github.com/understudy-ha/understudy/cluster"
)

// Error codes, in the field error_code of an answer that is not 2xx.
const (
	CodeNotActive    = "not_cluster_master"   // the node is not the active one
	CodeNoActive     = "no_active_node"       // no node is the active one
	CodeRedirect     = "redirect"             // the answer is at Location
	CodeRemoved      = "removed_from_cluster" // the node, or the caller, was removed
	CodeIncompatible = "incompatible_version" // understudy or PostgreSQL differ
	CodeForbidden    = "forbidden"            // no certificate of a member
	CodeToken        = "bad_token"            // unknown, expired, used or bound to another
	CodeNameTaken    = "name_in_use"
	CodeBadRequest   = "bad_request"
	CodeNotFound     = "not_found"
	CodeKept         = "database_kept" // the claimant's database is not the one that goes on
	CodeFailed       = "failed"
)

// Error is an answer that is not 2xx.
type Error struct {
	Status  int    `json:"-"` // HTTP status
	Code    string `json:"error_code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Errorf makes an Error.
func Errorf(status int, code, format string, args ...any) *Error {
	return &Error{status, code, fmt.Sprintf(format, args...)}
}

// Status is the body of /status.
type Status struct {
	Status   string         `json:"status"` // active, standby or runner
	Node     string         `json:"node"`
	Cluster  string         `json:"cluster"`
	Role     cluster.State  `json:"role"`
	Mode     cluster.Mode   `json:"mode"`              // majority or minority
	AtRisk   bool           `json:"at_risk,omitempty"` // what was written here in a minority is not the cluster's yet
	Epoch    cluster.Epoch  `json:"epoch"`
	Paused   bool           `json:"paused,omitempty"`
	Services []cluster.Unit `json:"services"`
	Removed  bool           `json:"removed_from_cluster,omitempty"`
}

// JoinRequest asks to become a member. The token alone lets it in.
type JoinRequest struct {
	TokenID string       `json:"token_id"`
	Secret  string       `json:"secret"`
	CSR     []byte       `json:"csr"` // PEM; the key stays where it was made
	Node    cluster.Node `json:"node"`
	// Secrets are those of the tokens that the new member is to have in Consul, by
	// whom each is for.
	Secrets map[string]string `json:"secrets"`
}

// JoinReply is everything that a new member needs.
type JoinReply struct {
	CA          []byte         `json:"ca"`          // PEM
	CAKey       []byte         `json:"ca_key"`      // PEM; managers only
	Certificate []byte         `json:"certificate"` // PEM, of the new member
	GossipKey   string         `json:"gossip_key"`
	Info        cluster.Info   `json:"info"`
	Members     []cluster.Node `json:"members"` // without the new one
	Active      string         `json:"active"`  // name of the active node
}
