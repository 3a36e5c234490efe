package cluster

import (
	"fmt"
	"strconv"
)

// Tenure names one time of one node as the source of WAL: an epoch of the cluster,
// or the time in which the node serves a part that is cut off. The slots of a
// source bear it, so a standby that was told to follow the same node at another time
// gets nothing from it. It is a fencing token (Kleppmann, How to do distributed
// locking, 2016) that PostgreSQL itself checks. Lower-case letters and digits.
type Tenure string

// Tenure of the node that is active in the epoch.
func (e Epoch) Tenure() Tenure { return Tenure(strconv.FormatUint(uint64(e), 10)) }

// Tenure of the node that serves the part.
func (s Side) Tenure() Tenure { return Tenure(fmt.Sprintf("m%x", s.Since.UnixMilli())) }

// Loan lets a standby take WAL of another one that has more, in an election that
// nobody could win for the lack of it.
type Loan struct {
	Tenure Tenure `json:"tenure"`
	Lines  []Line `json:"lines,omitempty"` // of the lender's WAL, see Answer.Line
}

// LoanTenure is that of a lender which has promised the epoch: it ends with whatever
// comes of the election.
func LoanTenure(e Epoch) Tenure { return "l" + e.Tenure() }

// Upstream is a node to take WAL from, in one of its tenures.
type Upstream struct {
	Node
	Tenure Tenure
}

// Upstream is the node that holds the leader lock, in the epoch it holds it for.
func (v View) Upstream() Upstream {
	return Upstream{v.Nodes[v.Leader.Node], v.Leader.Epoch.Tenure()}
}
