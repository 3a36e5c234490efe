package divergence

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// Bookkeeping is the prefix of the logical message that marks a transaction of
// understudy's own: it is nobody's data.
const Bookkeeping = "understudy"

// File is a relation as the WAL names it.
type File struct{ Database, Node uint32 }

// Commit is a transaction that has committed.
type Commit struct {
	XID uint32
	LSN cluster.LSN // where its commit record begins
	At  time.Time

	data      []uint32 // databases whose tables it changed
	catalogs  []File   // system tables that it wrote to
	sequences []File
	xids      []uint32 // its own and its subtransactions'
	truncates bool
	own       bool
}

// ChangesData says whether it changed what a user would miss: rows, sequences or
// the schema. Statistics are none of it, nor what understudy itself did.
func (c Commit) ChangesData() bool {
	return !c.own && (len(c.data) > 0 || len(c.sequences) > 0 || c.ChangesSchema())
}

// ChangesRows says whether it changed rows of tables.
func (c Commit) ChangesRows() bool { return !c.own && len(c.data) > 0 }

// Databases are those whose rows it changed.
func (c Commit) Databases() []uint32 { return c.data }

// ChangesSchema says whether it changed anything that is not rows of tables.
func (c Commit) ChangesSchema() bool { return !c.own && len(c.catalogs) > 0 }

// Catalogs are the system tables that it wrote to.
func (c Commit) Catalogs() []File { return c.catalogs }

// XIDs are its own and those of its subtransactions.
func (c Commit) XIDs() []uint32 { return c.xids }

// firstUser is the lowest number of a file that is not a system table's.
const firstUser = 16384

// The system tables that are written without any change of the schema: pg_class
// by a truncate, statistics by analyze.
const (
	pgClass         = 1259
	pgStatistic     = 2619
	pgStatisticData = 3429
)

// Scan gathers the transactions of a piece of WAL from the lines of pg_waldump.
// It needs the records of the managers Heap, Heap2, Transaction, Sequence and
// LogicalMessage.
type Scan struct {
	After   cluster.LSN // what has committed before is left out
	Commits []Commit
	LowXID  uint32    // the oldest transaction that began to write after After; 0: none did
	Before  time.Time // of the last commit before After, where one was seen

	at   cluster.LSN // of the current line
	open map[uint32]*Commit
}

// Line takes the next line. Lines that are no records are passed over.
func (s *Scan) Line(line string) error {
	rest, ok := strings.CutPrefix(line, "rmgr: ")
	if !ok {
		return nil
	}
	manager, _, _ := strings.Cut(rest, " ")
	xid, err := number(between(rest, "tx:", ","))
	if err != nil {
		return fmt.Errorf("read WAL: %w in %.100q", err, line)
	}
	lsn, err := cluster.ParseLSN(between(rest, "lsn:", ","))
	if err != nil {
		return fmt.Errorf("read WAL: %w", err)
	}
	s.at = lsn
	_, desc, _ := strings.Cut(rest, "desc: ")
	if xid == 0 && manager != "Transaction" {
		return nil
	}
	switch manager {
	case "Heap", "Heap2":
		return s.heap(xid, desc)
	case "Sequence":
		if f, ok := fileOf(desc); ok {
			c := s.tx(xid)
			c.sequences = add(c.sequences, f)
		}
	case "LogicalMessage":
		if strings.HasPrefix(desc, `MESSAGE transactional, prefix "`+Bookkeeping+`"`) {
			s.tx(xid).own = true
		}
	case "Transaction":
		return s.transaction(xid, lsn, desc)
	}
	return nil
}

func (s *Scan) tx(xid uint32) *Commit {
	if s.open == nil {
		s.open = map[uint32]*Commit{}
	}
	c := s.open[xid]
	if c == nil {
		c = &Commit{XID: xid}
		s.open[xid] = c
		if s.at >= s.After && (s.LowXID == 0 || int32(xid-s.LowXID) < 0) {
			s.LowXID = xid
		}
	}
	return c
}

func (s *Scan) heap(xid uint32, desc string) error {
	word, _, _ := strings.Cut(desc, " ")
	op, _, _ := strings.Cut(word, "+")
	f, ok := fileOf(desc)
	switch op {
	case "NEW_CID":
		if ok && f.Node != pgStatistic && f.Node != pgStatisticData {
			c := s.tx(xid)
			c.catalogs = add(c.catalogs, f)
		}
	case "INSERT", "UPDATE", "HOT_UPDATE", "DELETE", "MULTI_INSERT":
		if ok && f.Node >= firstUser {
			c := s.tx(xid)
			c.data = add(c.data, f.Database)
		}
	case "TRUNCATE":
		s.tx(xid).truncates = true
	}
	return nil
}

func (s *Scan) transaction(xid uint32, lsn cluster.LSN, desc string) error {
	op, rest, _ := strings.Cut(desc, " ")
	if op == "COMMIT_PREPARED" || op == "ABORT_PREPARED" {
		var text string
		var err error
		text, rest, _ = strings.Cut(rest, ": ") // the record has no transaction of its own
		if xid, err = number(text); err != nil {
			return fmt.Errorf("read WAL: %w in %.100q", err, desc)
		}
	}
	switch op {
	case "COMMIT", "COMMIT_PREPARED":
		return s.commit(xid, lsn, rest)
	case "ABORT", "ABORT_PREPARED":
		for _, x := range append(subxacts(rest), xid) {
			delete(s.open, x)
		}
	}
	return nil
}

// commit takes "TIME; subxacts: 1 2; ...".
func (s *Scan) commit(xid uint32, lsn cluster.LSN, rest string) error {
	when, _, _ := strings.Cut(rest, ";")
	at, err := time.Parse("2006-01-02 15:04:05.999999 UTC", when)
	if err != nil {
		return fmt.Errorf("read WAL: time of commit %d: %w", xid, err)
	}
	c := Commit{XID: xid, LSN: lsn, At: at}
	wrote := false
	for _, x := range append([]uint32{xid}, subxacts(rest)...) {
		c.xids = append(c.xids, x)
		part := s.open[x]
		if part == nil {
			continue
		}
		wrote = true
		delete(s.open, x)
		for _, db := range part.data {
			c.data = add(c.data, db)
		}
		for _, f := range part.catalogs {
			c.catalogs = add(c.catalogs, f)
		}
		for _, f := range part.sequences {
			c.sequences = add(c.sequences, f)
		}
		c.own, c.truncates = c.own || part.own, c.truncates || part.truncates
	}
	if c.truncates {
		c.forgetTruncate()
	}
	if lsn < s.After {
		s.Before = at
	} else if wrote {
		s.Commits = append(s.Commits, c)
	}
	return nil
}

// forgetTruncate turns the writes to pg_class, where that is all that was
// written to, into what they are.
func (c *Commit) forgetTruncate() {
	if slices.ContainsFunc(c.catalogs, func(f File) bool { return f.Node != pgClass }) {
		return
	}
	for _, f := range c.catalogs {
		c.data = add(c.data, f.Database)
	}
	c.catalogs = nil
}

// Sequences are the sequences that were used, also by transactions that have not
// committed.
func (s *Scan) Sequences() []File {
	var list []File
	for _, c := range s.Commits {
		for _, f := range c.sequences {
			list = add(list, f)
		}
	}
	for _, c := range s.open {
		for _, f := range c.sequences {
			list = add(list, f)
		}
	}
	return list
}

// Last is the last transaction that changed data.
func (s *Scan) Last() (Commit, bool) {
	for _, c := range slices.Backward(s.Commits) {
		if c.ChangesData() {
			return c, true
		}
	}
	return Commit{}, false
}

func subxacts(rest string) (list []uint32) {
	for word := range strings.FieldsSeq(between(rest, "; subxacts:", ";")) {
		if n, err := number(word); err == nil {
			list = append(list, n)
		}
	}
	return list
}

// fileOf reads the first "rel SPACE/DATABASE/NODE".
func fileOf(desc string) (File, bool) {
	_, rest, ok := strings.Cut(desc, "rel ")
	if !ok {
		return File{}, false
	}
	end := strings.IndexAny(rest, " ;,")
	if end < 0 {
		end = len(rest)
	}
	parts := strings.Split(rest[:end], "/")
	if len(parts) != 3 {
		return File{}, false
	}
	db, err1 := number(parts[1])
	node, err2 := number(parts[2])
	return File{db, node}, err1 == nil && err2 == nil
}

// between is what stands after a word, up to an end or all of it, trimmed.
func between(text, word, end string) string {
	_, rest, ok := strings.Cut(text, word)
	if !ok {
		return ""
	}
	v, _, _ := strings.Cut(rest, end)
	return strings.TrimSpace(v)
}

func number(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err
}

func add[T comparable](list []T, v T) []T {
	if slices.Contains(list, v) {
		return list
	}
	return append(list, v)
}
