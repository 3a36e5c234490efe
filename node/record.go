package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/statefile"
)

// Record is what a host knows of its own membership: how far start or join has
// come, and who it is. It holds no secret.
type Record struct {
	Command string       `json:"command"` // start or join: how it became a member
	Node    cluster.Node `json:"node"`
	Info    cluster.Info `json:"cluster"`
	Active  cluster.Node `json:"active"`  // the active node when it joined
	Members []string     `json:"members"` // addresses of members that Consul joins
	Done    []string     `json:"done"`    // steps of the command
	Member  bool         `json:"member"`  // the command has ended well
	Removed bool         `json:"removed"` // taken out of the cluster since
}

// ErrNotMember is the error of a host that no cluster was started on and that
// has joined none.
var ErrNotMember = errors.New("this host is not a member of a cluster; 'understudy cluster start' makes it the first, 'understudy cluster join' adds it to one")

// LoadRecord reads the record. A host that has none gets an empty one.
func LoadRecord(file string) (Record, error) {
	r, err := statefile.Read[Record](file)
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, nil
	}
	return r, err
}

// Options are those that were in force when the record was last written.
func (r Record) Options() cluster.Options { return r.Info.Options.With(r.Node.Options) }

// Save keeps the record, readable by every user of the host.
func (r Record) Save(file string) error { return statefile.WriteMode(file, r, 0o644) }

// UpdateRecord changes the record on disk, whatever a process has of it in
// memory. An error of change leaves it as it is, and is returned.
func UpdateRecord(file string, change func(*Record) error) error {
	lock, err := os.OpenFile(file+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("update the record of membership: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("update the record of membership: %w", err)
	}
	r, err := LoadRecord(file)
	if err != nil {
		return err
	}
	if err := change(&r); err != nil {
		return err
	}
	return r.Save(file)
}

// ErrUnfinished is the error of what must wait until start or join has ended:
// until then the record is theirs.
var ErrUnfinished = errors.New("start or join has not ended yet")

// ErrOtherCluster is the error of a registry that holds another cluster than
// the one this host is a member of, or none at all: it may have been wiped, and
// must not be taken for a new one.
var ErrOtherCluster = errors.New("Consul does not hold this host's cluster")

// SameCluster compares the registry with what the host knows.
func SameCluster(r Record, v cluster.View) error {
	switch {
	case v.Info == nil:
		return fmt.Errorf("%w: it holds none; was its data wiped?", ErrOtherCluster)
	case v.Info.ID != r.Info.ID:
		return fmt.Errorf("%w: it holds %s, not %s", ErrOtherCluster, v.Info.ID, r.Info.ID)
	case v.Info.SystemID != r.Info.SystemID:
		return fmt.Errorf("%w: its database is %s, not %s", ErrOtherCluster, v.Info.SystemID, r.Info.SystemID)
	}
	return nil
}
