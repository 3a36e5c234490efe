// Package divergence keeps what a losing side wrote: the row changes that a
// former active node committed and that the cluster went on without. An export
// is a folder named by its ID, with summary.json and changes.jsonl, one change a
// line in the order of the commits. Everything in it is readable without
// understudy and can be applied again with it.
package divergence

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// The files of an export.
const (
	summaryFile = "summary.json"
	changesFile = "changes.jsonl"
	// PhysicalDir is the copy of the data directory in an export whose changes
	// could not all be read row by row.
	PhysicalDir = "data"
)

// Summary says what an export holds.
type Summary struct {
	ID       string           `json:"id"`
	Cluster  string           `json:"cluster"`
	Node     string           `json:"node"`  // the node that lost
	Epoch    cluster.Epoch    `json:"epoch"` // in which it was active
	SystemID string           `json:"system_id"`
	Fork     cluster.LSN      `json:"fork"`     // the cluster went on from here without it
	Timeline cluster.Timeline `json:"timeline"` // on which it wrote
	Made     time.Time        `json:"made"`
	// First and Last are when it committed; zero where it committed nothing.
	First time.Time   `json:"first"`
	Last  time.Time   `json:"last"`
	End   cluster.LSN `json:"end"` // of the last commit; the fork where there is none

	Transactions int        `json:"transactions"` // that changed data
	Changes      int        `json:"changes"`      // lines of changes.jsonl
	Tables       []Table    `json:"tables"`
	Sequences    []Sequence `json:"sequences"`
	Schema       []Schema   `json:"schema"`

	// Complete: every change of data is in changes.jsonl or in Sequences. Where
	// it is false, Missing says why and Physical is the folder with a copy of
	// the whole data directory, or with that itself as soon as a clone has taken
	// its place.
	Complete bool     `json:"complete"`
	Missing  []string `json:"missing,omitempty"`
	Physical string   `json:"physical,omitempty"`

	// A row of the winning side was changed after the fork if its transaction
	// is not older than ForkXID, or has committed after ForkTime.
	ForkXID  uint32    `json:"fork_xid"`
	ForkTime time.Time `json:"fork_time"`
}

// Table counts the changes of one table.
type Table struct {
	Database  string `json:"database"`
	Schema    string `json:"schema"`
	Name      string `json:"name"`
	Inserts   int    `json:"inserts"`
	Updates   int    `json:"updates"`
	Deletes   int    `json:"deletes"`
	Truncates int    `json:"truncates"`
}

// Sequence is the value of a sequence that was used after the fork.
type Sequence struct {
	Database string `json:"database"`
	Schema   string `json:"schema"`
	Name     string `json:"name"`
	Last     int64  `json:"last_value"`
	Called   bool   `json:"is_called"`
}

// Schema is a transaction that changed something which is not rows of tables:
// tables themselves, functions, roles, privileges, large objects. It is reported
// and not exported.
type Schema struct {
	Database string    `json:"database"` // empty: of the whole server
	XID      uint32    `json:"xid"`
	At       time.Time `json:"at"`
	Catalogs []string  `json:"catalogs"` // the system tables that it wrote to
	Objects  []string  `json:"objects"`  // what there is now that it made or changed
}

// The operations of a Change.
const (
	Insert   = "insert"
	Update   = "update"
	Delete   = "delete"
	Truncate = "truncate"
)

// Change is one change of one row.
type Change struct {
	N        int       `json:"n"` // from 1, in the order of the commits
	XID      uint32    `json:"xid"`
	At       time.Time `json:"at"` // commit
	Database string    `json:"database"`
	Schema   string    `json:"schema"`
	Table    string    `json:"table"`
	Op       string    `json:"op"`

	Key []Column `json:"key,omitempty"` // of the row as it was, or is inserted; empty: the table has none
	Old []Column `json:"old,omitempty"` // the whole row as it was, where PostgreSQL logged it
	New []Column `json:"new,omitempty"`
	// Unchanged are columns of an updated row that are not in New because they
	// are large and were left as they were.
	Unchanged []string `json:"unchanged,omitempty"`
}

// Identified says whether the row that a change is about can be found again.
func (c Change) Identified() bool {
	return c.Op == Insert || c.Op == Truncate || len(c.Key) > 0 || len(c.Old) > 0
}

// Column is a value of a row, as PostgreSQL writes and reads it as text. A nil
// Value is NULL.
type Column struct {
	Name  string  `json:"name"`
	Type  string  `json:"type"`
	Value *string `json:"value"`
}

// ErrUnknown: there is no export of that ID.
var ErrUnknown = errors.New("no such divergence")

var idPattern = regexp.MustCompile(`^[0-9]{8}T[0-9]{6}Z-[A-Za-z0-9-]+-epoch[0-9]+(-[0-9]+)?$`)

// CheckID refuses what cannot be an ID, and so what would lead out of the folder.
func CheckID(id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("%w: %q", ErrUnknown, id)
	}
	return nil
}

// List returns the exports in a folder, oldest first. A folder that does not
// exist has none.
func List(dir string) ([]Summary, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list divergences: %w", err)
	}
	list := []Summary{}
	for _, e := range entries {
		if CheckID(e.Name()) != nil {
			continue
		}
		s, err := Read(dir, e.Name())
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

// Read returns one export's summary. The error wraps ErrUnknown where there is
// none.
func Read(dir, id string) (Summary, error) {
	var s Summary
	if err := CheckID(id); err != nil {
		return s, err
	}
	text, err := os.ReadFile(filepath.Join(dir, id, summaryFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("%w: %q", ErrUnknown, id)
	}
	if err != nil {
		return s, fmt.Errorf("read divergence: %w", err)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("read divergence %s: %w", id, err)
	}
	return s, nil
}

// Open returns one export's changes.jsonl.
func Open(dir, id string) (*os.File, error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(dir, id, changesFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %q", ErrUnknown, id)
	}
	return f, err
}

// Changes calls f for every change of a changes.jsonl, in order, until it fails.
func Changes(r io.Reader, f func(Change) error) error {
	dec := json.NewDecoder(bufio.NewReader(r))
	for {
		var c Change
		if err := dec.Decode(&c); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read changes: %w", err)
		}
		if err := f(c); err != nil {
			return err
		}
	}
}

// Writer makes an export beside its place, and puts it there when it is whole.
type Writer struct {
	dir, id, temp string
	file          *os.File
	out           *bufio.Writer
	tables        map[Table]*Table // by the key with zero counts
	changes       int
	unidentified  int
}

// NewWriter begins the export of a node in a folder, which is made when missing.
func NewWriter(dir, node string, epoch cluster.Epoch, at time.Time) (*Writer, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("export divergence: %w", err)
	}
	base := fmt.Sprintf("%s-%s-epoch%d", at.UTC().Format("20060102T150405Z"), node, epoch)
	id := base
	for n := 2; ; n++ {
		if _, err := os.Lstat(filepath.Join(dir, id)); errors.Is(err, fs.ErrNotExist) {
			break
		}
		id = fmt.Sprintf("%s-%d", base, n)
	}
	if err := CheckID(id); err != nil {
		return nil, fmt.Errorf("export divergence: %w", err)
	}
	// What an export that was broken off left is of no use.
	left, err := filepath.Glob(filepath.Join(dir, ".tmp-*"))
	if err != nil {
		return nil, fmt.Errorf("export divergence: %w", err)
	}
	for _, l := range left {
		if err := os.RemoveAll(l); err != nil {
			return nil, fmt.Errorf("export divergence: %w", err)
		}
	}
	w := &Writer{dir: dir, id: id, temp: filepath.Join(dir, ".tmp-"+id), tables: map[Table]*Table{}}
	if err := os.Mkdir(w.temp, 0o750); err != nil {
		return nil, fmt.Errorf("export divergence: %w", err)
	}
	if w.file, err = os.OpenFile(filepath.Join(w.temp, changesFile), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o640); err != nil {
		return nil, fmt.Errorf("export divergence: %w", err)
	}
	w.out = bufio.NewWriterSize(w.file, 1<<16)
	return w, nil
}

// ID is that of the export.
func (w *Writer) ID() string { return w.id }

// Physical is where a copy of the data directory goes.
func (w *Writer) Physical() string { return filepath.Join(w.temp, PhysicalDir) }

// Unidentified counts the changes of rows that cannot be found again.
func (w *Writer) Unidentified() int { return w.unidentified }

// Add appends a change and gives it its number.
func (w *Writer) Add(c Change) error {
	w.changes++
	c.N = w.changes
	key := Table{Database: c.Database, Schema: c.Schema, Name: c.Table}
	t := w.tables[key]
	if t == nil {
		t = &Table{Database: c.Database, Schema: c.Schema, Name: c.Table}
		w.tables[key] = t
	}
	switch c.Op {
	case Insert:
		t.Inserts++
	case Update:
		t.Updates++
	case Delete:
		t.Deletes++
	case Truncate:
		t.Truncates++
	}
	if !c.Identified() {
		w.unidentified++
	}
	enc := json.NewEncoder(w.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(c)
}

// Commit completes the summary by what was added, and puts the export in its
// place, durably. Physical is PhysicalDir for the copy that is in the export, or an
// absolute path.
func (w *Writer) Commit(s Summary) (Summary, error) {
	s.ID, s.Changes, s.Tables = w.id, w.changes, []Table{}
	for _, t := range w.tables {
		s.Tables = append(s.Tables, *t)
	}
	slices.SortFunc(s.Tables, func(a, b Table) int {
		return strings.Compare(a.Database+"\x00"+a.Schema+"\x00"+a.Name, b.Database+"\x00"+b.Schema+"\x00"+b.Name)
	})
	if s.Physical == PhysicalDir {
		s.Physical = filepath.Join(w.dir, w.id, PhysicalDir)
	}
	if err := w.finish(s); err != nil {
		return s, fmt.Errorf("export divergence: %w", err)
	}
	return s, nil
}

func (w *Writer) finish(s Summary) error {
	if err := errors.Join(w.out.Flush(), w.file.Sync(), w.file.Close()); err != nil {
		return err
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(w.temp, summaryFile), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close(), syncDir(w.temp)); err != nil {
		return err
	}
	if err := os.Rename(w.temp, filepath.Join(w.dir, w.id)); err != nil {
		return err
	}
	return syncDir(w.dir)
}

// Abort removes an export that was not committed.
func (w *Writer) Abort() error {
	return errors.Join(w.file.Close(), os.RemoveAll(w.temp))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
