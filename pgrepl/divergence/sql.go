package divergence

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// quoteIdent writes a name for SQL, always quoted.
func quoteIdent(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// literal writes a value for SQL. It has no type: PostgreSQL takes it for the
// type of the column, which reads what it has printed.
func literal(v *string) string {
	if v == nil {
		return "null"
	}
	s := "'" + strings.ReplaceAll(*v, "'", "''") + "'"
	if strings.Contains(s, `\`) {
		return " E" + strings.ReplaceAll(s, `\`, `\\`)
	}
	return s
}

func (c Change) table() string { return quoteIdent(c.Schema) + "." + quoteIdent(c.Table) }

func insertSQL(c Change) string {
	names, values := make([]string, len(c.New)), make([]string, len(c.New))
	for i, col := range c.New {
		names[i], values[i] = quoteIdent(col.Name), literal(col.Value)
	}
	return fmt.Sprintf("insert into %s (%s) overriding system value values (%s)", c.table(), strings.Join(names, ", "), strings.Join(values, ", "))
}

func assignments(cols []Column) string {
	list := make([]string, len(cols))
	for i, col := range cols {
		list[i] = quoteIdent(col.Name) + " = " + literal(col.Value)
	}
	return strings.Join(list, ", ")
}

// byKey is the condition that an index serves.
func byKey(key []Column) string {
	list := make([]string, len(key))
	for i, col := range key {
		list[i] = quoteIdent(col.Name) + " = " + literal(col.Value)
	}
	return strings.Join(list, " and ")
}

// byImage compares whole values as they are printed, because not every type has
// an equality.
func byImage(cols []Column) string {
	list := make([]string, len(cols))
	for i, col := range cols {
		name := quoteIdent(col.Name)
		switch {
		case col.Value == nil:
			list[i] = name + " is null"
		case col.Type == "boolean":
			list[i] = name + " = " + literal(col.Value)
		default:
			list[i] = fmt.Sprintf("(%s is not null and format('%%s', %s) = %s)", name, name, literal(col.Value))
		}
	}
	return strings.Join(list, " and ")
}

// where finds the row that an update or delete is about: exactly one.
func (c Change) where() string {
	if len(c.Key) > 0 {
		return byKey(c.Key)
	}
	return fmt.Sprintf("ctid = (select ctid from %s where %s limit 1)", c.table(), byImage(c.Old))
}

// SQL is the change as a statement, for a person to read and to run by hand. It
// checks for no conflict. A row that cannot be found again becomes a comment.
func (c Change) SQL() string {
	switch {
	case !c.Identified():
		return fmt.Sprintf("-- %s of an unknown row of %s: the table had no replica identity", c.Op, c.table())
	case c.Op == Insert:
		return insertSQL(c) + ";"
	case c.Op == Update:
		return fmt.Sprintf("update %s set %s where %s;", c.table(), assignments(c.New), c.where())
	case c.Op == Delete:
		return fmt.Sprintf("delete from %s where %s;", c.table(), c.where())
	}
	return fmt.Sprintf("-- truncate %s;", c.table())
}

// SQL is the value of the sequence as a statement.
func (s Sequence) SQL() string {
	return fmt.Sprintf("select setval('%s', %d, %t);",
		strings.ReplaceAll(quoteIdent(s.Schema)+"."+quoteIdent(s.Name), "'", "''"), s.Last, s.Called)
}

// WriteSQL writes an export as statements, a transaction for each one that was
// lost.
func WriteSQL(w io.Writer, s Summary, changes io.Reader) error {
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "-- divergence %s: what %s wrote in epoch %d after %s\n", s.ID, s.Node, s.Epoch, s.Fork)
	var at Change
	end := func() {
		if at.N > 0 {
			fmt.Fprintln(out, "commit;")
		}
	}
	err := Changes(changes, func(c Change) error {
		if c.XID != at.XID || c.Database != at.Database || at.N == 0 {
			end()
			if c.Database != at.Database {
				fmt.Fprintf(out, "\n\\connect %s\n", quoteIdent(c.Database))
			}
			fmt.Fprintf(out, "\n-- transaction %d, committed %s\nbegin;\n", c.XID, c.At.UTC().Format("2006-01-02 15:04:05.000000Z"))
		}
		at = c
		_, err := fmt.Fprintln(out, c.SQL())
		return err
	})
	if err != nil {
		return err
	}
	end()
	for _, seq := range s.Sequences {
		fmt.Fprintf(out, "\n\\connect %s\n%s\n", quoteIdent(seq.Database), seq.SQL())
	}
	return out.Flush()
}

// Row names the row of a change for a person: its key, or what there is of it.
func (c Change) Row() string {
	for _, cols := range [][]Column{c.Key, c.Old, c.New} {
		if len(cols) > 0 {
			return "(" + assignments(cols) + ")"
		}
	}
	return "(row unknown)"
}
