package node

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/understudy-ha/understudy/services"
)

// logger writes to the cluster's log file and to standard error or, where that is
// the journal's, to journald with one field for each attribute: NODE, COMPONENT,
// EPOCH, EVENT and so on.
func (h *Host) logger() *slog.Logger {
	var out slog.Handler = slog.NewTextHandler(os.Stderr, nil)
	if journal, ok := services.Journal(); ok {
		out = journal
	}
	if file := h.logFile(); file != nil {
		out = slog.NewMultiHandler(out, slog.NewTextHandler(file, nil))
	}
	return slog.New(out)
}

// logFile is cluster.log, or nil where it cannot be written. All daemons append to
// it, as users of one group.
func (h *Host) logFile() io.Writer {
	if err := os.MkdirAll(h.Layout.Log, 0o755); err != nil {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(h.Layout.Log, "cluster.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o660)
	if err != nil {
		return nil
	}
	return f
}
