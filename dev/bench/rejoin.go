package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/config"
	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/rig"
)

// database is one of a size, to which a node comes back after a crash. The sizes
// grow: each is what the one before has become.
type database struct {
	part string
	size int64 // bytes
}

const gigabyte = 1_000_000_000

var databases = []database{{"rejoin-1gb", gigabyte}, {"rejoin-10gb", 10 * gigabyte}}

// Rejoin is the way back of an active node that was killed whole, while another
// one took its place and writes.
type Rejoin struct {
	Part     string   `json:"part"`
	Size     int64    `json:"bytes"` // of the database
	Series            // from the start of the node until all are healthy and stream
	How      []string `json:"how"`       // rewind or clone; empty: it just followed
	CopiedMB []int    `json:"copied_mb"` // by the rewind, as pg_rewind says; 0: not known
}

const (
	// awayFor is how long others write before the node is started again.
	awayFor = 5 * time.Second
	// rejoinWithin is how long the node may take. A clone takes longest.
	rejoinWithin = 15 * time.Minute
)

// rejoins measures it for every database that is wanted.
func (b *bench) rejoins(ctx context.Context) error {
	var wanted []database
	for _, d := range databases {
		if b.wants(d.part) {
			wanted = append(wanted, d)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	if err := b.room(wanted[len(wanted)-1].size); err != nil {
		return err
	}
	s, err := b.healthy(ctx, 0)
	if err != nil {
		return err
	}
	w, err := b.open(ctx, "rejoin")
	if err != nil {
		return err
	}
	writing := run(ctx, w)
	for _, d := range wanted {
		if err == nil {
			s, err = b.rejoin(ctx, d, w, s)
		}
	}
	journals, ended := writing.end()
	if err := errors.Join(err, ended); err != nil {
		return err
	}
	return b.verify(ctx, journals)
}

// room sees to it that the disk holds a database on every node, its WAL, and what
// else there is.
func (b *bench) room(size int64) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(b.Dir, &fs); err != nil {
		return fmt.Errorf("look at the disk of %s: %w", b.Dir, err)
	}
	need := int64(len(b.rig.Nodes)) * (size + size/2 + 2*gigabyte)
	if free := int64(fs.Bavail) * fs.Bsize; free < need {
		return fmt.Errorf("%s has %d GB free, and %d GB are needed; choose another --dir", b.Dir, free/gigabyte, need/gigabyte)
	}
	return nil
}

func (b *bench) rejoin(ctx context.Context, d database, w *probe.Writer, s rig.Status) (rig.Status, error) {
	out := Rejoin{Part: d.part}
	defer func() { b.report.Rejoins = append(b.report.Rejoins, out) }()
	b.say("%s: filling the database", d.part)
	var err error
	if out.Size, err = b.fill(ctx, s, d.size); err != nil {
		return s, fmt.Errorf("%s: %w", d.part, err)
	}
	if s, err = b.healthyWithin(ctx, rejoinWithin, 0); err != nil {
		return s, fmt.Errorf("%s: %w", d.part, err)
	}
	for n := range b.Runs {
		if s, err = b.crashAndReturn(ctx, w, s, &out); err != nil {
			return s, fmt.Errorf("%s, run %d: %w", d.part, n+1, err)
		}
		b.say("%s %d of %d: streams after %s; %s, %d MB copied of %d MB", d.part, n+1, b.Runs,
			out.last(), cmp.Or(out.How[n], "followed"), out.CopiedMB[n], out.Size/1e6)
	}
	return s, nil
}

// Every row fills a page, of which most stays free: the database is large, and what
// is written to make it so is not.
const (
	bulkTable = `create table if not exists bulk (id bigint, filler text) with (fillfactor = 10, autovacuum_enabled = off)`
	bulkRows  = `insert into bulk select n, repeat('x', 600) from generate_series(1, $1::bigint) n`
	pageSize  = 8192
	chunk     = 20000 // rows in a transaction
)

// fill makes the database as large as size, and has every node write it to disk:
// what a crash leaves to be recovered is then only what came later.
func (b *bench) fill(ctx context.Context, s rig.Status, size int64) (is int64, err error) {
	active, standbys := b.rig.Sides(s.Active)
	conn, err := pgx.Connect(ctx, active.DSN)
	if err != nil {
		return 0, fmt.Errorf("fill the database: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, bulkTable); err != nil {
		return 0, fmt.Errorf("fill the database: %w", err)
	}
	for {
		if err := conn.QueryRow(ctx, `select pg_database_size(current_database())`).Scan(&is); err != nil {
			return is, fmt.Errorf("fill the database: %w", err)
		}
		if is >= size {
			break
		}
		if _, err := conn.Exec(ctx, bulkRows, min(chunk, (size-is)/pageSize+1)); err != nil {
			return is, fmt.Errorf("fill the database: %w", err)
		}
	}
	var end string
	if err := conn.QueryRow(ctx, `select pg_current_wal_insert_lsn()::text`).Scan(&end); err != nil {
		return is, fmt.Errorf("fill the database: %w", err)
	}
	// A standby's restart point needs a checkpoint of the active to go by.
	for _, t := range append([]probe.Target{active}, standbys...) {
		if err := flush(ctx, t, end); err != nil {
			return is, fmt.Errorf("write the database of %s to disk: %w", t.Node, err)
		}
	}
	return is, nil
}

func flush(ctx context.Context, t probe.Target, end string) error {
	conn, err := pgx.Connect(ctx, t.DSN)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var standby bool
	if err := conn.QueryRow(ctx, `select pg_is_in_recovery()`).Scan(&standby); err != nil {
		return err
	}
	if standby {
		if err := probe.AwaitReplay(ctx, conn, end); err != nil {
			return err
		}
	}
	_, err = conn.Exec(ctx, `checkpoint`)
	return err
}

// crashAndReturn kills the active node whole, lets the others go on without it,
// and starts it again.
func (b *bench) crashAndReturn(ctx context.Context, w *probe.Writer, s rig.Status, out *Rejoin) (rig.Status, error) {
	if err := pause(ctx, breath); err != nil {
		return s, err
	}
	if _, err := b.raftLeader(ctx, true, s); err != nil {
		return s, err
	}
	crashed := time.Now()
	within, cancel := context.WithTimeout(ctx, recoverWithin)
	defer cancel()
	if err := b.crash(within, s); err != nil {
		return s, err
	}
	if err := awaitOther(within, w, s.Active, crashed); err != nil {
		return s, err
	}
	if err := pause(ctx, awayFor); err != nil {
		return s, err
	}
	n, _ := b.rig.Node(s.Active)
	logs := filepath.Join(config.Paths(n.Root).Log, "cluster.log")
	seen, err := os.Stat(logs)
	if err != nil {
		return s, fmt.Errorf("look at the log of %s: %w", n.Name, err)
	}
	began := time.Now()
	if err := dev.Start(ctx, b.Dir, s.Active); err != nil {
		return s, err
	}
	next, err := b.healthyWithin(ctx, rejoinWithin, s.Epoch)
	if err != nil {
		return next, err
	}
	out.add(time.Since(began))
	text, err := os.ReadFile(logs)
	if err != nil {
		return next, fmt.Errorf("read the log of %s: %w", n.Name, err)
	}
	how, copied := mended(text[min(seen.Size(), int64(len(text))):])
	out.How, out.CopiedMB = append(out.How, how), append(out.CopiedMB, copied)
	return next, nil
}

// burst is 64 MB of WAL, which is more than what may still reach a standby from the
// sockets of a sender that is gone.
const burst = `select pg_logical_emit_message(true, 'bench', repeat('x', 8000)) from generate_series(1, 8000)`

// crash kills the active node whole right after a burst of WAL that no standby has
// got. So it has diverged, as the active of a busy cluster has, and to follow is not
// enough.
func (b *bench) crash(ctx context.Context, s rig.Status) error {
	active, _ := b.rig.Sides(s.Active)
	conn, err := pgx.Connect(ctx, active.DSN)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `set synchronous_commit = local`); err != nil {
		return err
	}
	standbys := func(ctx context.Context, sig syscall.Signal) error {
		var failed []error
		for _, n := range s.Standbys() {
			failed = append(failed, dev.Signal(ctx, b.Dir, n, "postgres", sig))
		}
		return errors.Join(failed...)
	}
	err = standbys(ctx, syscall.SIGSTOP)
	if err == nil {
		_, err = conn.Exec(ctx, burst)
	}
	if err == nil {
		err = dev.Kill(ctx, b.Dir, s.Active, dev.All)
	}
	return errors.Join(err, standbys(context.WithoutCancel(ctx), syscall.SIGCONT))
}

var (
	mendLine = regexp.MustCompile(`\bevent=(rewind|clone) `)
	copyLine = regexp.MustCompile(`need to copy ([0-9]+) MB`)
)

// mended reads from a node's log how it became a standby, and how many megabytes
// the last pg_rewind had to copy. The events of the cluster may come later than the
// node's health.
func mended(log []byte) (how string, copied int) {
	if all := mendLine.FindAllSubmatch(log, -1); len(all) > 0 {
		how = string(all[len(all)-1][1])
	}
	if all := copyLine.FindAllSubmatch(log, -1); len(all) > 0 {
		copied, _ = strconv.Atoi(string(all[len(all)-1][1])) // digits
	}
	return how, copied
}

func printRejoins(w io.Writer, rejoins []Rejoin) {
	fmt.Fprintf(w, "\nthe active node is killed whole, and started again when others have written for %.0f s: until it streams and all are healthy\n\n", awayFor.Seconds())
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "DATABASE\tRUNS\tMEDIAN\tMIN\tMAX\tREWOUND\tCOPIED AT MOST")
	for _, r := range rejoins {
		if len(r.Ms) == 0 {
			continue
		}
		rewound := 0
		for _, how := range r.How {
			if how == "rewind" {
				rewound++
			}
		}
		fmt.Fprintf(t, "%.1f GB\t%s\t%d of %d\t%d MB\n", float64(r.Size)/gigabyte, r.row(), rewound, len(r.How), slices.Max(r.CopiedMB))
	}
	t.Flush()
}
