package divergence

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Report says what came of applying an export.
type Report struct {
	ID        string     `json:"id"`
	Committed bool       `json:"committed"` // false: a rehearsal, nothing was changed
	Applied   int        `json:"applied"`   // changes, and sequences that were moved on
	Before    int        `json:"before"`    // changes that an earlier apply had applied
	Conflicts []Conflict `json:"conflicts"`
}

// Conflict is a change that does not fit the database as it is now. It is left
// out.
type Conflict struct {
	Change Change `json:"change"`
	Reason string `json:"reason"`
}

// Connect opens a session on one of the active's databases.
type Connect func(ctx context.Context, database string) (*pgx.Conn, error)

// Apply applies the changes of an export to the active's databases, one
// transaction for each, and reports every change that conflicts: the row is
// missing, or was changed after the fork, or its key exists. These are left out.
// Unless commit is true everything is rolled back, so that the report is exact
// and nothing is changed. What was committed is recorded in the table
// understudy.applied of that database, in the same transaction, and not applied
// again.
//
// Triggers and foreign keys do not fire, because what they did is among the
// changes. An error of a database leaves that one unchanged; those before it stay
// applied, and are recorded, so the call may be repeated.
func Apply(ctx context.Context, s Summary, changes io.Reader, connect Connect, commit bool) (Report, error) {
	r := Report{ID: s.ID, Committed: commit, Conflicts: []Conflict{}}
	byDatabase := map[string][]Change{}
	var order []string
	note := func(db string) {
		if _, ok := byDatabase[db]; !ok {
			order, byDatabase[db] = append(order, db), nil
		}
	}
	err := Changes(changes, func(c Change) error {
		note(c.Database)
		byDatabase[c.Database] = append(byDatabase[c.Database], c)
		return nil
	})
	if err != nil {
		return r, err
	}
	for _, seq := range s.Sequences {
		note(seq.Database)
	}
	for _, db := range order {
		if err := applyTo(ctx, s, db, byDatabase[db], connect, &r); err != nil {
			return r, fmt.Errorf("apply divergence %s to database %s: %w", s.ID, db, err)
		}
	}
	return r, nil
}

// settings make values read and compare as they were printed.
const settings = `set timezone = 'UTC'; set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres'; set bytea_output = 'hex';
	set extra_float_digits = 1; set lc_monetary = 'C'; set session_replication_role = 'replica'; set search_path = 'pg_catalog';
	set standard_conforming_strings = 'on'`

const recordSQL = `create schema if not exists understudy;
	create table if not exists understudy.applied (divergence text, change bigint, at timestamptz not null default now(), primary key (divergence, change))`

// AppliedTable is where Apply records what it has done: schema and name.
var AppliedTable = [2]string{"understudy", "applied"}

var errRehearsal = errors.New("rolled back")

func applyTo(ctx context.Context, s Summary, db string, changes []Change, connect Connect, r *Report) error {
	c, err := connect(ctx, db)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = c.Close(ctx) // the session is of no more use
	}()
	if _, err := c.Exec(ctx, settings, pgx.QueryExecModeSimpleProtocol); err != nil {
		return err
	}
	report := *r
	err = pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		a := applier{tx: tx, sum: s, report: &report, touched: map[string]bool{}, computed: map[string][]string{}}
		if err := a.all(ctx, db, changes); err != nil {
			return err
		}
		if !r.Committed {
			return errRehearsal
		}
		return nil
	})
	if err == nil || errors.Is(err, errRehearsal) {
		*r = report
		return nil
	}
	return err
}

// applier works in one transaction.
type applier struct {
	tx      pgx.Tx
	sum     Summary
	report  *Report
	touched map[string]bool // rows that this very transaction has changed

	applied  []int64             // changes
	computed map[string][]string // generated columns by table
}

func (a *applier) all(ctx context.Context, db string, changes []Change) error {
	if _, err := a.tx.Exec(ctx, recordSQL, pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("make the record of what was applied: %w", err)
	}
	done, err := a.done(ctx)
	if err != nil {
		return err
	}
	for _, c := range changes {
		if done[int64(c.N)] {
			a.report.Before++
			continue
		}
		if err := a.one(ctx, c); err != nil {
			return err
		}
	}
	_, err = a.tx.Exec(ctx, "insert into understudy.applied (divergence, change) select $1, unnest($2::bigint[])", a.sum.ID, a.applied)
	if err != nil {
		return fmt.Errorf("record what was applied: %w", err)
	}
	for _, seq := range a.sum.Sequences {
		if seq.Database != db {
			continue
		}
		if err := a.sequence(ctx, seq); err != nil {
			return err
		}
	}
	return nil
}

// done are the changes that were applied earlier. The lock makes two at a time
// wait for each other.
func (a *applier) done(ctx context.Context) (map[int64]bool, error) {
	if _, err := a.tx.Exec(ctx, "lock table understudy.applied in exclusive mode"); err != nil {
		return nil, err
	}
	rows, err := a.tx.Query(ctx, "select change from understudy.applied where divergence = $1", a.sum.ID)
	if err != nil {
		return nil, err
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	done := map[int64]bool{}
	for _, n := range list {
		done[n] = true
	}
	return done, err
}

// one applies a change, or notes why it cannot be. Each has a savepoint.
func (a *applier) one(ctx context.Context, c Change) error {
	reason, err := a.try(ctx, c)
	var pg *pgconn.PgError
	switch {
	case err == nil && reason == "":
		a.report.Applied++
		a.applied = append(a.applied, int64(c.N))
		a.touch(c)
		return nil
	case err == nil:
	case errors.As(err, &pg) && refused(pg):
		reason = refusal(pg)
		_, err = a.tx.Exec(ctx, "rollback to savepoint change; release savepoint change", pgx.QueryExecModeSimpleProtocol)
	}
	if err != nil {
		return fmt.Errorf("change %d: %w", c.N, err)
	}
	a.report.Conflicts = append(a.report.Conflicts, Conflict{c, reason})
	return nil
}

// exec runs the statement of a change in one round trip.
func (a *applier) exec(ctx context.Context, sql string) error {
	_, err := a.tx.Exec(ctx, "savepoint change; "+sql+"; release savepoint change", pgx.QueryExecModeSimpleProtocol)
	return err
}

// refused tells what the database has against one row from what is wrong with
// the database: classes 22 (data), 23 (constraints) and 42 (there is no such
// table or column).
func refused(e *pgconn.PgError) bool {
	return strings.HasPrefix(e.Code, "22") || strings.HasPrefix(e.Code, "23") || strings.HasPrefix(e.Code, "42")
}

func refusal(e *pgconn.PgError) string {
	if e.Code == "23505" {
		return "key exists already: " + e.Detail
	}
	return e.Message
}

func (a *applier) try(ctx context.Context, c Change) (conflict string, err error) {
	if !c.Identified() {
		return "it is not known which row is meant: the table had no replica identity", nil
	}
	if c.New, err = a.withoutGenerated(ctx, c); err != nil {
		return "", err
	}
	switch c.Op {
	case Insert:
		return "", a.exec(ctx, insertSQL(c))
	case Truncate:
		var empty bool
		err := a.ask(ctx, "select not exists (select from "+c.table()+")", nil, &empty)
		if err != nil || empty {
			return "", err
		}
		return "a truncate is not applied to a table that has rows", nil
	}
	conflict, err = a.check(ctx, c)
	switch {
	case err != nil || conflict != "":
		return conflict, err
	case c.Op == Delete:
		return "", a.exec(ctx, fmt.Sprintf("delete from %s where %s", c.table(), c.where()))
	case len(c.New) == 0:
		return "", nil
	}
	return "", a.exec(ctx, fmt.Sprintf("update %s set %s where %s", c.table(), assignments(c.New), c.where()))
}

// ask reads a row, behind a savepoint.
func (a *applier) ask(ctx context.Context, query string, args []any, into ...any) (err error) {
	var steps pgx.Batch
	steps.Queue("savepoint change")
	steps.Queue(query, args...)
	steps.Queue("release savepoint change")
	results := a.tx.SendBatch(ctx, &steps)
	defer func() { err = cmp.Or(err, results.Close()) }()
	if _, err := results.Exec(); err != nil {
		return err
	}
	return results.QueryRow().Scan(into...)
}

// check says what speaks against an update or a delete.
func (a *applier) check(ctx context.Context, c Change) (string, error) {
	old := "true"
	if len(c.Old) > 0 {
		old = byImage(c.Old)
	}
	var same, changed bool
	var forkTime *time.Time
	if !a.sum.ForkTime.IsZero() {
		forkTime = &a.sum.ForkTime
	}
	err := a.ask(ctx, fmt.Sprintf(`select %s, $1::bigint <> 0 and age(xmin) <= age($1::bigint::text::xid)
		or coalesce(pg_xact_commit_timestamp(xmin) > $2::timestamptz, false) from %s where %s for update`, old, c.table(), c.where()),
		[]any{int64(a.sum.ForkXID), forkTime}, &same, &changed)
	switch {
	case errors.Is(err, pgx.ErrNoRows) && len(c.Key) > 0:
		return "row is missing", nil
	case errors.Is(err, pgx.ErrNoRows):
		return "row is missing or was changed meanwhile", nil
	case err != nil:
		return "", err
	case !same || changed && len(c.Key) > 0 && !a.touched[rowID(c, c.Key)]:
		return "row was changed meanwhile", nil
	}
	return "", nil
}

// touch remembers the row that a change has made, under its new key: that it is
// young is then no conflict for the later changes of it.
func (a *applier) touch(c Change) {
	if len(c.Key) > 0 {
		a.touched[rowID(c, renamed(c.Key, c.New))] = true
	}
}

// renamed is a key after an update.
func renamed(key, now []Column) []Column {
	out := make([]Column, len(key))
	for i, k := range key {
		out[i] = k
		for _, n := range now {
			if n.Name == k.Name {
				out[i] = n
			}
		}
	}
	return out
}

func rowID(c Change, key []Column) string { return c.table() + "\x00" + byKey(key) }

// withoutGenerated leaves out the columns that the database computes.
func (a *applier) withoutGenerated(ctx context.Context, c Change) ([]Column, error) {
	computed, ok := a.computed[c.table()]
	if !ok {
		rows, err := a.tx.Query(ctx, `select attname::text from pg_attribute where attrelid = to_regclass($1) and attgenerated <> ''`, c.table())
		if err != nil {
			return nil, err
		}
		if computed, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
			return nil, err
		}
		a.computed[c.table()] = computed
	}
	return slices.DeleteFunc(slices.Clone(c.New), func(col Column) bool { return slices.Contains(computed, col.Name) }), nil
}

// sequence moves a sequence on to where the losing side was, never back. PostgreSQL
// does not roll that back, so a rehearsal only counts it.
func (a *applier) sequence(ctx context.Context, s Sequence) error {
	name := quoteIdent(s.Schema) + "." + quoteIdent(s.Name)
	var ahead bool
	err := a.tx.QueryRow(ctx, `select coalesce((select case when increment_by > 0 then $2::bigint > coalesce(last_value, start_value - 1)
		else $2::bigint < coalesce(last_value, start_value + 1) end from pg_sequences
		where format('%I.%I', schemaname, sequencename)::regclass = to_regclass($1)), false)`, name, s.Last).Scan(&ahead)
	if err != nil {
		return fmt.Errorf("read sequence %s: %w", name, err)
	}
	if !ahead {
		return nil
	}
	a.report.Applied++
	if !a.report.Committed {
		return nil
	}
	if _, err := a.tx.Exec(ctx, "select setval(to_regclass($1), $2, $3)", name, s.Last, s.Called); err != nil {
		return fmt.Errorf("move sequence %s on: %w", name, err)
	}
	return nil
}
