package pgrepl

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/pgrepl/divergence"
)

// literalSettings make values print in one way on every server.
const literalSettings = `set timezone = 'UTC'; set datestyle = 'ISO'; set intervalstyle = 'postgres'; set bytea_output = 'hex';
	set extra_float_digits = 1; set xmlbinary = 'base64'; set lc_monetary = 'C'`

// database reads what was changed in one database.
func (e *exporter) database(ctx context.Context, d database) error {
	c, err := e.connect(ctx, d.name)
	if err != nil {
		return err
	}
	defer discard(c)
	if _, err := c.Exec(ctx, literalSettings, pgx.QueryExecModeSimpleProtocol); err != nil {
		return err
	}
	if d.usable() {
		e.held[uint32(d.oid)] = lsnOrZero(d.confirmed)
		err = e.rows(ctx, c, d)
	}
	if err == nil {
		err = e.sequences(ctx, c, d)
	}
	if err == nil {
		err = e.schema(ctx, c, d)
	}
	return err
}

// layout is what the catalogs say of a table, as they are at the end.
type layout struct {
	kind    string   // r, p, or m
	full    bool     // the whole old row is logged
	key     []string // columns that identify a row; none where the table has no key
	columns []divergence.Column
}

const layoutSQL = `select n.nspname, c.relname, c.relkind::text, c.relreplident = 'f',
	array(select a.attname::text from pg_index i, unnest(i.indkey) with ordinality k(attnum, n)
		join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
		where i.indrelid = c.oid and case c.relreplident when 'i' then i.indisreplident else i.indisprimary end order by k.n),
	array(select a.attname::text from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum),
	array(select format_type(a.atttypid, null) from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum)
	from pg_class c join pg_namespace n on n.oid = c.relnamespace
	where c.relkind in ('r', 'p', 'm') and c.oid >= 16384 and n.nspname !~ '^pg_'`

func layouts(ctx context.Context, c *pgx.Conn) (map[[2]string]layout, error) {
	rows, err := c.Query(ctx, layoutSQL)
	if err != nil {
		return nil, err
	}
	all := map[[2]string]layout{}
	var schema, name string
	var l layout
	var names, types []string
	_, err = pgx.ForEachRow(rows, []any{&schema, &name, &l.kind, &l.full, &l.key, &names, &types}, func() error {
		l.columns = make([]divergence.Column, len(names))
		for i := range names {
			l.columns[i] = divergence.Column{Name: names[i], Type: types[i]}
		}
		all[[2]string{schema, name}] = l
		return nil
	})
	return all, err
}

// rows decodes what the slot of a database holds.
func (e *exporter) rows(ctx context.Context, c *pgx.Conn, d database) error {
	tables, err := layouts(ctx, c)
	if err != nil {
		return err
	}
	rows, err := c.Query(ctx, `select xid::text::bigint, data from pg_logical_slot_peek_changes($1, null, null)`, d.slot)
	if err != nil {
		return err
	}
	var xid int64
	var text string
	_, err = pgx.ForEachRow(rows, []any{&xid, &text}, func() error {
		commit, ok := e.byXID[uint32(xid)]
		if !ok {
			return nil // before the fork
		}
		e.seen[commit.XID] = true
		row, ok, err := divergence.ParseRow(text)
		if err != nil || !ok {
			return err
		}
		for _, table := range row.Tables {
			if tables[table].kind == "m" || table == divergence.AppliedTable {
				continue // made of other tables' rows, or our own
			}
			change := divergence.Change{XID: commit.XID, At: commit.At, Database: d.name, Schema: table[0], Table: table[1],
				Op: row.Op, New: row.New, Unchanged: row.Unchanged}
			identify(&change, row, tables[table])
			if err := e.writer.Add(change); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("decode slot %s: %w", d.slot, err)
	}
	return nil
}

// identify fills in which row a change is about. PostgreSQL prints the old row,
// or its key where that has changed; columns that are NULL it leaves out.
func identify(c *divergence.Change, row divergence.Row, l layout) {
	old := row.Old
	switch {
	case l.full && len(old) > 0:
		c.Old = completed(old, l.columns)
		c.Key = pick(c.Old, l.key)
	case len(old) > 0:
		c.Key = old
	case c.Op == divergence.Update, c.Op == divergence.Insert:
		c.Key = pick(c.New, l.key)
	}
}

// completed adds the columns that were NULL.
func completed(old, all []divergence.Column) []divergence.Column {
	out := slices.Clone(old)
	for _, col := range all {
		if !slices.ContainsFunc(old, func(o divergence.Column) bool { return o.Name == col.Name }) {
			out = append(out, divergence.Column{Name: col.Name, Type: col.Type})
		}
	}
	return out
}

// pick returns the named columns, or none where one is not there.
func pick(from []divergence.Column, names []string) []divergence.Column {
	var out []divergence.Column
	for _, name := range names {
		i := slices.IndexFunc(from, func(c divergence.Column) bool { return c.Name == name })
		if i < 0 {
			return nil
		}
		out = append(out, from[i])
	}
	return out
}

// sequences records the values of those that were used.
func (e *exporter) sequences(ctx context.Context, c *pgx.Conn, d database) error {
	var nodes []int64
	for _, f := range e.scan.Sequences() {
		if int64(f.Database) == d.oid {
			nodes = append(nodes, int64(f.Node))
		}
	}
	rows, err := c.Query(ctx, `select n.nspname, c.relname, format('%I.%I', n.nspname, c.relname) from pg_class c
		join pg_namespace n on n.oid = c.relnamespace
		where c.relkind = 'S' and c.relpersistence = 'p' and pg_relation_filenode(c.oid)::bigint = any($1) order by 1, 2`, nodes)
	if err != nil {
		return err
	}
	type found struct{ Schema, Name, Quoted string }
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[found])
	if err != nil {
		return err
	}
	for _, f := range list {
		seq := divergence.Sequence{Database: d.name, Schema: f.Schema, Name: f.Name}
		if err := c.QueryRow(ctx, "select last_value, is_called from "+f.Quoted).Scan(&seq.Last, &seq.Called); err != nil {
			return fmt.Errorf("read sequence %s: %w", f.Quoted, err)
		}
		e.sum.Sequences = append(e.sum.Sequences, seq)
	}
	return nil
}

// objectsSQL names what certain transactions have made or changed, as far as it
// is still there.
const objectsSQL = `select distinct what from (
	select case relkind when 'v' then 'view' when 'm' then 'materialized view' when 'i' then 'index' when 'I' then 'index'
		when 'S' then 'sequence' when 'f' then 'foreign table' when 'c' then 'type' else 'table' end || ' ' || oid::regclass as what, xmin x
		from pg_class where relkind <> 't' and oid >= 16384
	union all select 'table ' || attrelid::regclass, xmin from pg_attribute where attrelid >= 16384 and attnum > 0
		and attrelid in (select oid from pg_class where relkind in ('r', 'p'))
	union all select 'function ' || oid::regprocedure, xmin from pg_proc where oid >= 16384
	union all select 'schema ' || nspname, xmin from pg_namespace
	union all select 'constraint ' || conname || ' of ' || conrelid::regclass, xmin from pg_constraint where conrelid <> 0
	union all select 'trigger ' || tgname || ' of ' || tgrelid::regclass, xmin from pg_trigger where not tgisinternal
	union all select 'extension ' || extname, xmin from pg_extension
	union all select 'role ' || rolname, xmin from pg_authid
	union all select 'database ' || datname, xmin from pg_database
	) t where x::text::bigint = any($1) order by what`

// schema reports the transactions that changed more than rows.
func (e *exporter) schema(ctx context.Context, c *pgx.Conn, d database) error {
	names := map[uint32]string{}
	rows, err := c.Query(ctx, `select pg_relation_filenode(oid)::bigint, relname from pg_class
		where relnamespace = 'pg_catalog'::regnamespace and relkind = 'r'`)
	if err != nil {
		return err
	}
	var node int64
	var name string
	if _, err := pgx.ForEachRow(rows, []any{&node, &name}, func() error { names[uint32(node)] = name; return nil }); err != nil {
		return err
	}
	for _, commit := range e.scan.Commits {
		if !commit.ChangesSchema() {
			continue
		}
		change := divergence.Schema{XID: commit.XID, At: commit.At, Catalogs: []string{}, Objects: []string{}}
		for _, f := range commit.Catalogs() {
			shared := f.Database == 0 && d.name == "postgres"
			if int64(f.Database) != d.oid && !shared {
				continue
			}
			if !shared {
				change.Database = d.name
			}
			catalog := names[f.Node]
			if catalog == "" {
				catalog = fmt.Sprintf("system table in file %d", f.Node)
			}
			change.Catalogs = append(change.Catalogs, catalog)
		}
		if len(change.Catalogs) == 0 {
			continue
		}
		if change.Objects, err = e.objects(ctx, c, commit); err != nil {
			return err
		}
		slices.Sort(change.Catalogs)
		e.sum.Schema = append(e.sum.Schema, change)
	}
	return nil
}

func (e *exporter) objects(ctx context.Context, c *pgx.Conn, commit divergence.Commit) ([]string, error) {
	xids := []int64{}
	for _, x := range commit.XIDs() {
		xids = append(xids, int64(x))
	}
	rows, err := c.Query(ctx, objectsSQL, xids)
	if err != nil {
		return nil, err
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if list == nil {
		list = []string{}
	}
	return list, err
}
