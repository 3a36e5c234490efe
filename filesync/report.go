package filesync

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/syncthing/syncthing/lib/model"

	"github.com/understudy-ha/understudy/cluster"
)

// Report says how far this node's folders have come.
//
// Complete is exact about what the active had scanned when it published last:
// all that it announced until then has arrived here, nothing of it is wanting,
// and nothing is here that the active is yet to override. It is unknown until
// the folders were scanned and something was published for this epoch. On the
// source it says that nobody announces what the source does not have.
func (e *Engine) Report() cluster.FilesReport {
	s := e.look()
	r := cluster.FilesReport{Sending: s.role == Sending, At: time.Now()}
	e.mu.Lock()
	role := e.role
	r.Epoch = e.epoch
	known := e.published.Sending && e.published.Epoch == e.epoch
	ready := true
	for _, f := range e.folders {
		ready = ready && f.ready
	}
	e.mu.Unlock()
	for _, err := range s.errs {
		ready = ready && err == nil
	}

	edited, ahead := 0, false
	for _, c := range s.all {
		r.Need += c.need
		edited += c.edited
		ahead = ahead || c.ahead
		if role == Sending {
			r.Sequence += c.own
		} else {
			r.Sequence += c.theirs
		}
	}
	absent, other := e.problems(s)
	r.Problem = strings.Join(append(absent, other...), "; ")
	switch {
	case len(absent) > 0:
		r.Complete = cluster.No
	case !ready || role != Sending && !known:
		r.Complete = cluster.Unknown
	case role == Sending:
		r.Complete = cluster.TriOf(r.Need == 0)
	default:
		r.Complete = cluster.TriOf(s.heard && r.Need == 0 && edited == 0 && !ahead)
	}
	return r
}

// starting says that a folder cannot be asked yet, which is no error.
func starting(err error) bool {
	return errors.Is(err, model.ErrFolderNotRunning) || errors.Is(err, model.ErrFolderMissing)
}

// problems lists what an operator should know: first the folders that are not
// usable, then what else stands in the way.
func (e *Engine) problems(s state) (absent, other []string) {
	for i, f := range e.folders {
		_, _, err := e.model.State(f.ID)
		switch text := missing(f.Folder); {
		case text != "":
			absent = append(absent, text)
		case err != nil:
			absent = append(absent, fmt.Sprintf("folder %s: %v", f.Path, err))
		case s.errs[i] != nil && !starting(s.errs[i]):
			absent = append(absent, fmt.Sprintf("folder %s: %v", f.Path, s.errs[i]))
		}
		if errs, err := e.model.FolderErrors(f.ID); err == nil && len(errs) > 0 {
			other = append(other, fmt.Sprintf("folder %s: %d entries cannot be brought in line, first %s: %s", f.Path, len(errs), errs[0].Path, errs[0].Err))
		}
		if err := e.watchError(f); err != nil {
			other = append(other, fmt.Sprintf("folder %s is not watched, changes are found every %s only: %v; "+
				"the sysctl fs.inotify.max_user_watches may be too low", f.Path, e.opts.RescanInterval, err))
		}
	}
	for _, l := range e.conns.ListenerStatus() {
		if l.Error != nil {
			other = append(other, fmt.Sprintf("peers cannot connect to %s: %s", e.opts.Listen, *l.Error))
		}
	}
	return absent, other
}
