package handlerrunner

import (
	"context"
	"errors"

	"github.com/understudy-ha/understudy/cluster"
)

// errNoDatabase is the answer of a runner to whatever needs one.
var errNoDatabase = errors.New("this node is a runner and has no database")

// noDatabase stands for the server of a runner: it does not run, and cannot.
type noDatabase struct{}

var (
	_ Postgres    = noDatabase{}
	_ Replication = noDatabase{}
	_ Directory   = noDatabase{}
)

func (noDatabase) Observe(context.Context) (Database, error) {
	return Database{Running: cluster.No, Primary: cluster.No}, nil
}

func (noDatabase) Promote(context.Context) (cluster.Position, error) {
	return cluster.Position{}, errNoDatabase
}
func (noDatabase) SetQuorum(context.Context, cluster.Quorum) error { return errNoDatabase }
func (noDatabase) Gate(context.Context, bool) error                { return errNoDatabase }

func (noDatabase) Detach(context.Context) (cluster.Position, error) {
	return cluster.Position{}, errNoDatabase
}
func (noDatabase) Follow(context.Context, cluster.Upstream) error        { return errNoDatabase }
func (noDatabase) Slots(context.Context, cluster.Tenure, []string) error { return errNoDatabase }
func (noDatabase) History(context.Context, cluster.Timeline) (cluster.History, error) {
	return nil, errNoDatabase
}

func (noDatabase) Complete(context.Context) (bool, error) { return false, errNoDatabase }
func (noDatabase) Final(context.Context) (cluster.Position, error) {
	return cluster.Position{}, errNoDatabase
}
func (noDatabase) Rewind(context.Context, cluster.Upstream) error { return errNoDatabase }
func (noDatabase) Clone(context.Context, cluster.Upstream, func(string)) error {
	return errNoDatabase
}
