package cluster

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// LSN is a position in PostgreSQL's write-ahead log, in bytes.
type LSN uint64

// String gives PostgreSQL's own notation, such as 0/3000060.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// ParseLSN reads PostgreSQL's notation.
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	h, err1 := strconv.ParseUint(hi, 16, 32)
	l, err2 := strconv.ParseUint(lo, 16, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("parse LSN: %q is not of the form 0/3000060", s)
	}
	return LSN(h<<32 | l), nil
}

// MarshalText writes PostgreSQL's notation.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads PostgreSQL's notation.
func (l *LSN) UnmarshalText(b []byte) error {
	v, err := ParseLSN(string(b))
	*l = v
	return err
}

// Timeline is a PostgreSQL timeline id. It grows with every promotion.
type Timeline uint32

// Position is how far a data directory has durably come. LSNs of different
// timelines cannot be compared without the history of the later one.
type Position struct {
	Timeline Timeline `json:"timeline"`
	LSN      LSN      `json:"lsn"`
}

func (p Position) String() string { return fmt.Sprintf("%s on timeline %d", p.LSN, p.Timeline) }

// Fork is one line of a timeline history: Timeline ended at LSN, where the next
// one in the list began.
type Fork struct {
	Timeline Timeline `json:"timeline"`
	LSN      LSN      `json:"lsn"`
}

// History lists the ancestors of a timeline, oldest first. Timeline 1 has none.
type History []Fork

// ParseHistory reads a timeline history file, as PostgreSQL writes it in
// pg_wal/0000000N.history and sends it for TIMELINE_HISTORY.
func ParseHistory(text string) (History, error) {
	var h History
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if len(f) < 2 {
			return nil, fmt.Errorf("parse timeline history: line %q", line)
		}
		tl, err := strconv.ParseUint(f[0], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("parse timeline history: timeline %q", f[0])
		}
		lsn, err := ParseLSN(f[1])
		if err != nil {
			return nil, fmt.Errorf("parse timeline history: %w", err)
		}
		h = append(h, Fork{Timeline(tl), lsn})
	}
	return h, nil
}

// Contains says whether p lies on the way that led to the timeline tip with
// history h: a data directory at p can follow that timeline by replaying WAL
// alone. Anything else has diverged and must be rewound or cloned.
func (h History) Contains(tip Timeline, p Position) bool {
	if p.Timeline == tip {
		return true
	}
	for _, f := range h {
		if f.Timeline == p.Timeline {
			return p.LSN <= f.LSN
		}
	}
	return false
}

// Leads is Contains for a directory whose own history is known, too: it tells
// timelines apart that have one number and were begun at different places.
func (h History) Leads(tip Timeline, p Position, own History) bool {
	if !h.Contains(tip, p) {
		return false
	}
	if len(own) == 0 || len(h) == 0 {
		return true // timeline 1, or not known
	}
	return own[len(own)-1].LSN == h.Start(p.Timeline)
}

// Start is where a timeline on this line was begun.
func (h History) Start(tl Timeline) (begun LSN) {
	for _, f := range h {
		if f.Timeline == tl {
			break
		}
		begun = f.LSN
	}
	return begun
}

// Fork is the last point that this line and another, which has come to p, have
// in common.
func (h History) Fork(tip Timeline, other History, p Position) Position {
	ours := append(slices.Clone(h), Fork{tip, ^LSN(0)})
	theirs := append(slices.Clone(other), Fork{p.Timeline, p.LSN})
	var at Position
	for i := range min(len(ours), len(theirs)) {
		if ours[i].Timeline != theirs[i].Timeline {
			break
		}
		at = Position{ours[i].Timeline, min(ours[i].LSN, theirs[i].LSN)}
		if ours[i].LSN != theirs[i].LSN {
			break
		}
	}
	return at
}
