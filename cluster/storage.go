package cluster

import "time"

// A disk is full below fullBelow free bytes, four segments of WAL: PostgreSQL
// ends when it cannot write WAL, and a server that stops in order still needs
// some. It stays full until there is roomFrom again, so that what PostgreSQL
// itself frees when it stops is no reason to come and go.
const (
	fullBelow = 64 << 20
	roomFrom  = 128 << 20
)

// Full says whether a disk with so many bytes free is full, when it was, or was
// not, at the last look.
func Full(free int64, before bool) bool {
	if before {
		return free < roomFrom
	}
	return free < fullBelow
}

// StorageReport is the file storage.json in the run directory: what check-runner
// knows of the disk that the database lies on.
type StorageReport struct {
	Problem string    `json:"problem,omitempty"` // empty: it takes writes
	At      time.Time `json:"at"`
}
