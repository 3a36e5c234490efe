package pgrepl

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl/divergence"
)

// asideMark lies in a data directory that is to be kept for good, and holds the ID
// of its record. It goes where the directory goes.
func asideMark(dataDir string) string { return filepath.Join(dataDir, "understudy.divergence") }

// asideDir is where a Clone puts the data directory with that record.
func asideDir(dataDir, id string) string { return dataDir + ".divergence-" + id }

// SetAside records what Export could not write down, and why. The record is listed
// among the exports, holds no rows, and names the data directory as it was in
// Summary.Physical: the next Clone puts it there, and nothing deletes it. Until then
// it stays in its place, and the call may be repeated: it returns the same record.
// The server may be stopped or not start at all. ErrBusy while a clone or a rewind
// is under way.
func (s *Server) SetAside(ctx context.Context, r ExportRequest, why error) (divergence.Summary, error) {
	sum, err := s.setAside(ctx, r, why)
	if err != nil {
		return sum, fmt.Errorf("set the data directory aside: %w", err)
	}
	return sum, nil
}

func (s *Server) setAside(ctx context.Context, r ExportRequest, why error) (sum divergence.Summary, err error) {
	unlock, err := s.lock()
	if err != nil {
		return sum, err
	}
	defer unlock()
	id, err := aside(s.DataDir)
	if err != nil {
		return sum, err
	}
	if id != "" {
		if sum, err = divergence.Read(r.Dir, id); err == nil {
			return sum, nil
		} // else it was broken off before the record was there
	}
	sum = divergence.Summary{Cluster: r.Cluster, Node: s.NodeName, Epoch: r.Epoch, Fork: r.Fork, End: r.Fork, Made: time.Now().UTC(),
		Sequences: []divergence.Sequence{}, Schema: []divergence.Schema{}, Missing: []string{"nothing could be read: " + why.Error()}}
	if sum.SystemID, err = systemID(s.DataDir); err != nil {
		return sum, err
	}
	control, err := s.ControlData(ctx)
	if err != nil {
		return sum, err
	}
	sum.Timeline = max(control.Timeline, control.MinRecoveryEnd.Timeline)
	w, err := divergence.NewWriter(r.Dir, s.NodeName, r.Epoch, sum.Made)
	if err != nil {
		return sum, err
	}
	if err := s.writeFile(asideMark(s.DataDir), w.ID()+"\n", 0o600); err != nil {
		return sum, err
	}
	sum.Physical = asideDir(s.DataDir, w.ID())
	return w.Commit(sum)
}

// aside returns the ID of the record of a directory that is to be kept, empty for
// any other.
func aside(dataDir string) (id string, err error) {
	text, err := os.ReadFile(asideMark(dataDir))
	if isMissing(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look whether %s is to be kept: %w", dataDir, err)
	}
	id = strings.TrimSpace(string(text))
	return id, divergence.CheckID(id)
}

// replaced is the name that a data directory gets when a clone takes its place.
func replaced(dataDir string, at time.Time) (string, error) {
	id, err := aside(dataDir)
	if err != nil || id == "" {
		return oldDir(dataDir, at), err
	}
	dir := asideDir(dataDir, id)
	if exists(asideMark(dir)) {
		return oldDir(dataDir, at), nil // the mark here is a copy
	}
	// A clone to which a crash left this name did not get to its place.
	return dir, os.RemoveAll(dir)
}

// onLine refuses a server whose WAL has not come by way of all the timelines.
func onLine(h cluster.History, end cluster.Timeline, wrote []cluster.Timeline) error {
	for _, tl := range wrote {
		found := tl == end
		for _, f := range h {
			found = found || f.Timeline == tl
		}
		if !found {
			return fmt.Errorf("this node wrote on timeline %d, which is not on the way to its timeline %d", tl, end)
		}
	}
	return nil
}
