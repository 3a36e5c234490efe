package services

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// Journal returns a handler that writes to journald, with a field for each attribute:
// NODE, COMPONENT, EPOCH, EVENT and so on. It is not ok where standard error does not
// lead there.
func Journal() (h slog.Handler, ok bool) {
	ours, err := journal.StderrIsJournalStream()
	return journald{}, err == nil && ours
}

// journald is a slog.Handler that speaks journald's own protocol.
type journald struct {
	prefix string
	attrs  []slog.Attr
}

func (journald) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (j journald) WithAttrs(more []slog.Attr) slog.Handler {
	all := append([]slog.Attr{}, j.attrs...)
	for _, a := range more {
		a.Key = j.prefix + a.Key
		all = append(all, a)
	}
	return journald{j.prefix, all}
}

func (j journald) WithGroup(name string) slog.Handler {
	return journald{j.prefix + name + "_", j.attrs}
}

func (j journald) Handle(_ context.Context, r slog.Record) error {
	fields := map[string]string{}
	text := r.Message
	note := func(a slog.Attr) { fields[fieldName(a.Key)] = a.Value.Resolve().String() }
	for _, a := range j.attrs {
		note(a)
	}
	r.Attrs(func(a slog.Attr) bool {
		a.Key = j.prefix + a.Key
		note(a)
		if a.Key != "event" { // which the message tells
			text += fmt.Sprintf(" %s=%q", a.Key, a.Value.Resolve().String())
		}
		return true
	})
	return journal.Send(text, priority(r.Level), fields)
}

// fieldName makes a name of a field as journald wants it: upper-case letters, digits
// and underscores, and a letter first. MESSAGE is the text's.
func fieldName(key string) string {
	name := strings.TrimLeft(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key), "_0123456789")
	if name == "" || name == "MESSAGE" || name == "PRIORITY" {
		return "UNDERSTUDY_" + name
	}
	return name
}

func priority(l slog.Level) journal.Priority {
	switch {
	case l >= slog.LevelError:
		return journal.PriErr
	case l >= slog.LevelWarn:
		return journal.PriWarning
	}
	return journal.PriInfo
}
