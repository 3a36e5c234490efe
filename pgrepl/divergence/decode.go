package divergence

import (
	"fmt"
	"strings"
)

// Row is a change as PostgreSQL's test_decoding prints it, before what the
// catalogs know is added.
type Row struct {
	Op string
	// Tables are schema and name; a truncate has several.
	Tables    [][2]string
	Old       []Column // key or whole row as it was; columns that are NULL are left out
	New       []Column
	Unchanged []string
}

// ParseRow reads "table SCHEMA.NAME: OP: ...". Anything else, such as BEGIN,
// COMMIT and messages, is not ok.
func ParseRow(text string) (r Row, ok bool, err error) {
	rest, ok := strings.CutPrefix(text, "table ")
	if !ok {
		return r, false, nil
	}
	s := scanner{rest}
	for {
		schema, name := s.ident('.'), ""
		if s.skip(".") {
			name = s.ident(':', ',')
		}
		r.Tables = append(r.Tables, [2]string{schema, name})
		if !s.skip(", ") {
			break
		}
	}
	if !s.skip(": ") {
		return r, true, s.broken("table")
	}
	op, rest, found := strings.Cut(s.text, ":")
	s.text = strings.TrimPrefix(rest, " ")
	switch {
	case !found:
		return r, true, s.broken("operation")
	case op == "INSERT":
		r.Op = Insert
		r.New, r.Unchanged, err = s.columns("")
	case op == "UPDATE":
		r.Op = Update
		if s.skip("old-key: ") {
			if r.Old, _, err = s.columns("new-tuple:"); err != nil {
				return r, true, err
			}
		}
		r.New, r.Unchanged, err = s.columns("")
	case op == "DELETE":
		r.Op = Delete
		r.Old, _, err = s.columns("")
	case op == "TRUNCATE":
		r.Op = Truncate
	default:
		return r, true, s.broken("operation " + op)
	}
	return r, true, err
}

// scanner reads from the front of what is left.
type scanner struct{ text string }

func (s *scanner) skip(prefix string) bool {
	rest, ok := strings.CutPrefix(s.text, prefix)
	s.text = rest
	return ok
}

func (s *scanner) broken(what string) error {
	return fmt.Errorf("read decoded change: no %s at %.60q", what, s.text)
}

// ident reads an identifier, quoted where PostgreSQL quotes it, up to a
// delimiter, which stays.
func (s *scanner) ident(ends ...rune) string {
	if s.skip(`"`) {
		return s.quoted('"')
	}
	at := strings.IndexAny(s.text, string(ends))
	if at < 0 {
		at = len(s.text)
	}
	name := s.text[:at]
	s.text = s.text[at:]
	return name
}

// quoted reads to the closing quote; a doubled one stands for itself.
func (s *scanner) quoted(quote byte) string {
	var b strings.Builder
	for {
		at := strings.IndexByte(s.text, quote)
		if at < 0 {
			b.WriteString(s.text)
			s.text = ""
			return b.String()
		}
		b.WriteString(s.text[:at])
		s.text = s.text[at+1:]
		if !s.skip(string(quote)) {
			return b.String()
		}
		b.WriteByte(quote)
	}
}

// typeName reads a type up to the bracket that closes it. A type has brackets
// of its own when it is an array, and quoted names when it is the user's.
func (s *scanner) typeName() (string, bool) {
	depth, quoted := 0, false
	for i := 0; i < len(s.text); i++ {
		switch c := s.text[i]; {
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[':
			depth++
		case c == ']' && depth > 0:
			depth--
		case c == ']':
			name := s.text[:i]
			s.text = s.text[i+1:]
			return name, s.skip(":")
		}
	}
	return "", false
}

// columns reads "name[type]:value ..." up to the end, or up to a word.
func (s *scanner) columns(end string) (list []Column, unchanged []string, err error) {
	for s.text != "" {
		if end != "" && s.skip(end) {
			s.skip(" ")
			break
		}
		if s.skip("(no-tuple-data)") {
			break
		}
		c := Column{Name: s.ident('[')}
		if !s.skip("[") {
			return nil, nil, s.broken("type of column " + c.Name)
		}
		var ok bool
		if c.Type, ok = s.typeName(); !ok {
			return nil, nil, s.broken("type of column " + c.Name)
		}
		if s.skip("unchanged-toast-datum") {
			unchanged = append(unchanged, c.Name)
		} else {
			c.Value = s.value()
			list = append(list, c)
		}
		s.skip(" ")
	}
	return list, unchanged, nil
}

// value reads a literal: quoted, a bit string, or a bare word such as a number.
func (s *scanner) value() *string {
	var v string
	switch {
	case s.skip("'"), s.skip("B'"):
		v = s.quoted('\'')
	default:
		v, s.text, _ = strings.Cut(s.text, " ")
		if v == "null" {
			return nil
		}
	}
	return &v
}
