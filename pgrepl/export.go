package pgrepl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl/divergence"
	"github.com/understudy-ha/understudy/pgrepl/internal/command"
)

// ExportRequest says what a losing side is to be asked for.
type ExportRequest struct {
	Cluster string        // id
	Epoch   cluster.Epoch // in which this node was active
	Fork    cluster.LSN   // the winner has everything up to here, and nothing of this node after it
	Dir     string        // exports go here, each in a folder of its own; made when missing
	// Wrote are the timelines on which this node wrote after the fork. One that
	// did not lead to where the server is now cannot be read, which is an error.
	Wrote []cluster.Timeline
}

// Export writes down every change that this former active node has committed
// after the fork, before a Rewind or a Clone does away with it.
//
// The server is stopped, or a primary with its gate closed. One that is stopped
// is started privately for it, as a primary that nobody can reach, and stopped
// again; it writes WAL on its timeline then, so do not call it for a directory
// that is to follow without a rewind. One that runs as a standby must be stopped
// first: ErrRunning.
//
// Where rows could not be read one by one the whole data directory is copied
// beside them, and Summary.Complete is false; a server that runs must be stopped
// for that, an error that wraps ErrRunning. ErrNoSpace: the disk is too full. After an error nothing is left behind and the call may be repeated,
// or SetAside keeps the directory as it is;
// done again for the same changes it returns the export that there is.
func (s *Server) Export(ctx context.Context, r ExportRequest) (divergence.Summary, error) {
	summary, err := s.export(ctx, r)
	if err != nil {
		return summary, fmt.Errorf("export divergence: %w", err)
	}
	return summary, nil
}

func (s *Server) export(ctx context.Context, r ExportRequest) (sum divergence.Summary, err error) {
	unlock, err := s.lock()
	if err != nil {
		return sum, err
	}
	defer unlock()
	connect := func(ctx context.Context, database string) (*pgx.Conn, error) {
		return s.connectTo(ctx, s.SocketDir, database)
	}
	var server *private
	if s.postmaster() == 0 {
		if server, err = s.startPrivate(ctx); err != nil {
			return sum, err
		}
		connect = server.connect
	}
	e := &exporter{Server: s, ExportRequest: r, connect: connect, byXID: map[uint32]divergence.Commit{}, seen: map[uint32]bool{}, held: map[uint32]cluster.LSN{}}
	err = e.gather(ctx)
	if server != nil {
		err = errors.Join(err, server.end())
	}
	if err == nil && e.found != nil {
		return *e.found, nil
	}
	if err == nil {
		return e.finish(ctx)
	}
	if e.writer != nil {
		err = errors.Join(err, e.writer.Abort())
	}
	return sum, err
}

// exporter makes one export.
type exporter struct {
	*Server
	ExportRequest
	connect func(ctx context.Context, database string) (*pgx.Conn, error)

	scan   *divergence.Scan
	byXID  map[uint32]divergence.Commit
	found  *divergence.Summary // an earlier export of the same
	writer *divergence.Writer
	sum    divergence.Summary
	seen   map[uint32]bool        // transactions that were decoded
	held   map[uint32]cluster.LSN // by database, from where on its slot holds what was committed
}

// gather reads everything that needs the server to run.
func (e *exporter) gather(ctx context.Context) error {
	c, err := e.connect(ctx, "postgres")
	if err != nil {
		return err
	}
	defer discard(c)
	var standby bool
	if err := c.QueryRow(ctx, "select pg_is_in_recovery(), (select system_identifier::text from pg_control_system())").
		Scan(&standby, &e.sum.SystemID); err != nil {
		return err
	}
	if standby {
		return fmt.Errorf("%w as a standby", ErrRunning)
	}
	end, back, err := endOf(ctx, c)
	if err != nil {
		return err
	}
	history, err := e.History(ctx, end.Timeline)
	if err != nil {
		return err
	}
	if err := onLine(history, end.Timeline, e.Wrote); err != nil {
		return err
	}
	if e.scan, err = e.Server.scan(ctx, back, e.Fork, end); err != nil {
		return err
	}
	e.describe(end)
	if err := e.earlier(); err != nil || e.found != nil {
		return err
	}
	if e.sum.ForkTime, err = e.forkTime(ctx, c); err != nil {
		return err
	}
	if e.writer, err = divergence.NewWriter(e.Dir, e.NodeName, e.Epoch, time.Now()); err != nil {
		return err
	}
	list, err := databasesOn(ctx, c)
	if err != nil {
		return err
	}
	for _, d := range list {
		if err := e.database(ctx, d); err != nil {
			return fmt.Errorf("database %s: %w", d.name, err)
		}
	}
	return nil
}

// describe fills in what the scan knows.
func (e *exporter) describe(end cluster.Position) {
	s := &e.sum
	s.Cluster, s.Node, s.Epoch = e.Cluster, e.NodeName, e.Epoch
	s.Fork, s.Timeline, s.Made, s.End = e.Fork, end.Timeline, time.Now().UTC(), e.Fork
	s.Sequences, s.Schema, s.ForkXID = []divergence.Sequence{}, []divergence.Schema{}, e.scan.LowXID
	for _, c := range e.scan.Commits {
		e.byXID[c.XID] = c
		if !c.ChangesData() {
			continue
		}
		s.Transactions++
		s.Last, s.End = c.At, c.LSN
		if s.First.IsZero() {
			s.First = c.At
		}
	}
}

// earlier finds the export of the same changes that was made before a crash.
func (e *exporter) earlier() error {
	list, err := divergence.List(e.Dir)
	if err != nil {
		return err
	}
	for _, old := range list {
		if old.SystemID == e.sum.SystemID && old.Node == e.sum.Node && old.Fork == e.sum.Fork && old.Timeline == e.sum.Timeline &&
			old.End == e.sum.End && old.Transactions == e.sum.Transactions {
			e.found = &old
		}
	}
	return nil
}

// recentXIDs is how far back the time of the last commit before the fork is
// looked for, where the WAL that was read does not tell.
const recentXIDs = 10000

func (e *exporter) forkTime(ctx context.Context, c *pgx.Conn) (time.Time, error) {
	if !e.scan.Before.IsZero() || e.scan.LowXID == 0 {
		return e.scan.Before, nil
	}
	var at *time.Time
	err := c.QueryRow(ctx, `select max(pg_xact_commit_timestamp(x::text::xid)) from generate_series(greatest(3, $1::bigint - $2), $1 - 1) x`,
		int64(e.scan.LowXID), int64(recentXIDs)).Scan(&at)
	if err != nil || at == nil {
		return time.Time{}, err
	}
	return *at, nil
}

// finish says what is missing, copies the data directory for it, and puts the
// export in place. The server has stopped by then.
func (e *exporter) finish(ctx context.Context) (divergence.Summary, error) {
	missed := 0
	for _, c := range e.scan.Commits {
		if c.ChangesRows() && !e.seen[c.XID] && !(c.ChangesSchema() && e.decodable(c)) {
			missed++
		}
	}
	if missed > 0 {
		e.missing("%d transactions are not in a slot", missed)
	}
	if n := e.writer.Unidentified(); n > 0 {
		e.missing("%d updates and deletes do not say which row they meant, because their table had no replica identity", n)
	}
	e.sum.Complete = len(e.sum.Missing) == 0
	if !e.sum.Complete {
		e.sum.Physical = divergence.PhysicalDir
		if err := e.copyDirectory(ctx, e.writer.Physical()); err != nil {
			return e.sum, errors.Join(err, e.writer.Abort())
		}
	}
	slices.SortStableFunc(e.sum.Schema, func(a, b divergence.Schema) int { return a.At.Compare(b.At) })
	return e.writer.Commit(e.sum)
}

// decodable says whether the slots hold a transaction. If it changed the schema
// and nothing of it was decoded, it only wrote a table anew.
func (e *exporter) decodable(c divergence.Commit) bool {
	return !slices.ContainsFunc(c.Databases(), func(db uint32) bool {
		from, ok := e.held[db]
		return !ok || c.LSN < from
	})
}

func (e *exporter) missing(format string, args ...any) {
	e.sum.Missing = append(e.sum.Missing, fmt.Sprintf(format, args...))
}

// copyDirectory copies the data directory, sharing blocks where the file system
// can.
func (e *exporter) copyDirectory(ctx context.Context, to string) error {
	if e.postmaster() != 0 {
		return fmt.Errorf("%w, and the data directory must be copied: %s", ErrRunning, strings.Join(e.sum.Missing, "; "))
	}
	size, err := sizeOf(e.DataDir)
	if err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(to), &fs); err != nil {
		return fmt.Errorf("measure free space: %w", err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < size+headroom {
		return fmt.Errorf("%w: %s are needed at %s for a copy of the data directory and %s are free", ErrNoSpace, bytes(size+headroom), e.Dir, bytes(free))
	}
	_, err = command.Runner{}.Run(ctx, command.Op{Label: "copy the data directory", Argv: []string{"/bin/cp", "-a", "--reflink=auto", "--", e.DataDir, to}})
	return err
}

func sizeOf(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a file of the server that runs
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil {
			size += info.Size()
		}
		return err
	})
	return size, err
}
