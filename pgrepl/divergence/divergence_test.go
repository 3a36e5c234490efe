package divergence

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

func col(name, typ, value string) Column { return Column{name, typ, &value} }

func TestParseRow(t *testing.T) {
	null := Column{"b", "text", nil}
	for text, want := range map[string]Row{
		`table public.t: INSERT: a[integer]:-1 b[text]:null`:                         {Op: Insert, Tables: [][2]string{{"public", "t"}}, New: []Column{col("a", "integer", "-1"), null}},
		`table public.t: INSERT: b[text]:'it''s ] x[text]:\ ' c[bit varying]:B'101'`: {Op: Insert, Tables: [][2]string{{"public", "t"}}, New: []Column{col("b", "text", `it's ] x[text]:\ `), col("c", "bit varying", "101")}},
		`table public.t: INSERT: d[text[]]:'{a,"b c"}' e["S ]"."T[]"[]]:'x'`:         {Op: Insert, Tables: [][2]string{{"public", "t"}}, New: []Column{col("d", "text[]", `{a,"b c"}`), col("e", `"S ]"."T[]"[]`, "x")}},
		`table "S.""x"."a: b, c": UPDATE: old-key: "C""[d"[timestamp with time zone]:'2026' new-tuple: a[text]:unchanged-toast-datum b[boolean]:true`: {
			Op: Update, Tables: [][2]string{{`S."x`, "a: b, c"}}, Old: []Column{col(`C"[d`, "timestamp with time zone", "2026")}, New: []Column{col("b", "boolean", "true")}, Unchanged: []string{"a"}},
		`table public.t: UPDATE: a[text]:'old-key: ' b[text]:'new-tuple:'`: {Op: Update, Tables: [][2]string{{"public", "t"}}, New: []Column{col("a", "text", "old-key: "), col("b", "text", "new-tuple:")}},
		`table public.t: DELETE: (no-tuple-data)`:                          {Op: Delete, Tables: [][2]string{{"public", "t"}}},
		`table public.t: DELETE: a[numeric]:NaN`:                           {Op: Delete, Tables: [][2]string{{"public", "t"}}, Old: []Column{col("a", "numeric", "NaN")}},
		`table public.a, "S"."b": TRUNCATE: restart_seqs cascade`:          {Op: Truncate, Tables: [][2]string{{"public", "a"}, {"S", "b"}}},
	} {
		if got, ok, err := ParseRow(text); err != nil || !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%s\n got %+v, %v\nwant %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"BEGIN 7", "COMMIT 7", "message: transactional: 1 prefix: understudy, sz: 0 content:"} {
		if _, ok, err := ParseRow(text); ok || err != nil {
			t.Errorf("%s is a row: %v", text, err)
		}
	}
	for _, text := range []string{"table public.t", "table public.t: MERGE: a[int]:1", "table public.t: INSERT: a[int", "table public.t: INSERT: a"} {
		if _, ok, err := ParseRow(text); !ok || err == nil {
			t.Errorf("%s was understood", text)
		}
	}
}

// record is a line of pg_waldump.
func record(manager, xid, lsn, desc string) string {
	return "rmgr: " + manager + " len (rec/tot):     46/    46, tx:        " + xid + ", lsn: " + lsn + ", prev 0/00000028, desc: " + desc
}

func scanOf(t *testing.T, after cluster.LSN, lines ...string) *Scan {
	t.Helper()
	s := &Scan{After: after}
	for _, l := range lines {
		if err := s.Line(l); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

const commit = "COMMIT 2026-11-21 08:19:13.233488 UTC"

func TestScan(t *testing.T) {
	row := func(xid, lsn string) string {
		return record("Heap", xid, lsn, "INSERT off 2 flags 0x08, blkref #0: rel 1663/5/16384 blk 0")
	}
	catalog := func(xid, node string) string {
		return record("Heap2", xid, "0/01000040", "NEW_CID rel 1663/5/"+node+"; tid 0/13; cmin: 0, cmax: 1, combo: 1")
	}
	truncate := record("Heap", "7", "0/01000050", "TRUNCATE nrelids 1 relids 16397")
	for name, c := range map[string]struct {
		lines              []string
		data, rows, schema bool
	}{
		"rows":                 {[]string{row("7", "0/01000040")}, true, true, false},
		"a subtransaction":     {[]string{row("8", "0/01000040"), record("Transaction", "7", "0/01000060", commit+"; subxacts: 8 9")}, true, true, false},
		"analyze":              {[]string{catalog("7", "2619"), record("Heap", "7", "0/01000041", "INPLACE off 5, blkref #0: rel 1663/5/1259 blk 0")}, false, false, false},
		"a schema change":      {[]string{catalog("7", "1255")}, true, false, true},
		"a truncate":           {[]string{catalog("7", "1259"), truncate}, true, true, false},
		"truncate and rename":  {[]string{catalog("7", "1259"), catalog("7", "2608"), truncate}, true, false, true},
		"a sequence":           {[]string{record("Sequence", "7", "0/01000040", "LOG rel 1663/5/16396, blkref #0: rel 1663/5/16396 blk 0")}, true, false, false},
		"row locks":            {[]string{record("Heap", "7", "0/01000040", "LOCK off 1: xid 7: flags 0x00 LOCK_ONLY EXCL_LOCK , blkref #0: rel 1663/5/16384 blk 0")}, false, false, false},
		"understudy's own":     {[]string{catalog("7", "1259"), record("LogicalMessage", "7", "0/01000042", `MESSAGE transactional, prefix "understudy"; payload (0 bytes): `)}, false, false, false},
		"of no transaction":    {[]string{record("Heap2", "0", "0/01000040", "PRUNE latestRemovedXid 728 nredirected 1 ndead 2, blkref #0: rel 1663/5/16384 blk 0")}, false, false, false},
		"rolled back to a":     {[]string{row("8", "0/01000040"), record("Transaction", "8", "0/01000041", "ABORT 2026-11-21 08:19:13.293086 UTC")}, false, false, false},
		"not a record of ours": {[]string{"pg_waldump: first record is after 0/1000000, at 0/1000028, skipping over 40 bytes"}, false, false, false},
	} {
		s := scanOf(t, 0x1000000, append(c.lines, record("Transaction", "7", "0/01000060", commit))...)
		var got Commit
		if len(s.Commits) > 0 {
			got = s.Commits[0]
		}
		if got.ChangesData() != c.data || got.ChangesRows() != c.rows || got.ChangesSchema() != c.schema {
			t.Errorf("%s: data %t, rows %t, schema %t", name, got.ChangesData(), got.ChangesRows(), got.ChangesSchema())
		}
	}
	prepared := scanOf(t, 0x1000000, row("8", "0/01000040"), row("9", "0/01000041"),
		record("Transaction", "8", "0/01000050", "PREPARE gid g'id, 1: x: 2026-11-21 08:25:21.815261 UTC"),
		record("Transaction", "0", "0/01000060", "COMMIT_PREPARED 8: 2026-11-21 08:25:21.820623 UTC"),
		record("Transaction", "0", "0/01000070", "ABORT_PREPARED 9: 2026-11-21 08:25:21.826265 UTC"))
	if len(prepared.Commits) != 1 || prepared.Commits[0].XID != 8 || prepared.LowXID != 8 {
		t.Errorf("prepared: %+v", prepared)
	}
}

// What committed before the fork only gives its time; what straddles it counts,
// but is not young.
func TestScanAcrossTheFork(t *testing.T) {
	insert := "INSERT off 2 flags 0x08, blkref #0: rel 1663/5/16384 blk 0"
	s := scanOf(t, 0x1000100,
		record("Heap", "5", "0/01000010", insert), record("Heap", "6", "0/01000020", insert),
		record("Transaction", "5", "0/01000030", commit),
		record("Heap", "6", "0/01000110", insert), record("Transaction", "6", "0/01000120", commit),
		record("Heap", "9", "0/01000130", insert), record("Heap", "8", "0/01000140", insert), record("Transaction", "9", "0/01000150", commit))
	var xids []uint32
	for _, c := range s.Commits {
		xids = append(xids, c.XID)
	}
	want := time.Date(2026, 11, 21, 8, 19, 13, 233488000, time.UTC)
	if !slices.Equal(xids, []uint32{6, 9}) || s.LowXID != 8 || !s.Before.Equal(want) {
		t.Errorf("commits %v, low %d, before %s", xids, s.LowXID, s.Before)
	}
	if last, ok := s.Last(); !ok || last.XID != 9 || last.LSN != 0x1000150 {
		t.Errorf("last %+v", last)
	}
	for _, broken := range []string{record("Heap", "x", "0/1", insert), record("Heap", "7", "0-1", insert), record("Transaction", "7", "0/1", "COMMIT yesterday"),
		record("Transaction", "0", "0/1", "COMMIT_PREPARED x: 2026")} {
		if err := s.Line(broken); err == nil {
			t.Errorf("%s was understood", broken)
		}
	}
}

func TestWriter(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "divergence")
	if list, err := List(dir); err != nil || list == nil || len(list) != 0 {
		t.Errorf("list %v, %v", list, err)
	}
	at := time.Date(2026, 11, 21, 8, 15, 0, 0, time.UTC)
	broken, err := NewWriter(dir, "beta", 5, at)
	if err != nil {
		t.Fatal(err)
	}
	if err := broken.file.Close(); err != nil { // the process died here
		t.Fatal(err)
	}
	var ids []string
	for range 2 {
		w, err := NewWriter(dir, "beta", 5, at)
		if err != nil {
			t.Fatal(err)
		}
		key := []Column{col("id", "integer", "1")}
		for _, c := range []Change{{XID: 7, At: at, Database: "app", Schema: "public", Table: "t", Op: Insert, Key: key, New: key},
			{XID: 7, At: at, Database: "app", Schema: "public", Table: "t", Op: Delete}} {
			if err := w.Add(c); err != nil {
				t.Fatal(err)
			}
		}
		if w.Unidentified() != 1 {
			t.Errorf("%d unidentified", w.Unidentified())
		}
		s, err := w.Commit(Summary{Node: "beta"})
		if err != nil || s.Changes != 2 || !slices.Equal(s.Tables, []Table{{"app", "public", "t", 1, 0, 1, 0}}) {
			t.Errorf("%+v, %v", s, err)
		}
		ids = append(ids, s.ID)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 || !slices.Equal(ids, []string{"20261121T081500Z-beta-epoch5", "20261121T081500Z-beta-epoch5-2"}) {
		t.Errorf("%v, %v, %v", entries, ids, err)
	}
	for _, id := range []string{"..", "", "20261121T081500Z-beta-epoch5/..", "20261121T081500Z-beta-epoch6", "../20261121T081500Z-beta-epoch5"} {
		if _, err := Read(dir, id); !errors.Is(err, ErrUnknown) {
			t.Errorf("read %q: %v", id, err)
		}
		if _, err := Open(dir, id); !errors.Is(err, ErrUnknown) {
			t.Errorf("open %q: %v", id, err)
		}
	}
	f, err := Open(dir, ids[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var text strings.Builder
	s, err := Read(dir, ids[0])
	if err != nil {
		t.Fatal(err)
	}
	s.Sequences = []Sequence{{"app", "public", "it's", 42, true}}
	if err := WriteSQL(&text, s, f); err != nil {
		t.Fatal(err)
	}
	want := `-- divergence 20261121T081500Z-beta-epoch5: what beta wrote in epoch 0 after 0/0

\connect "app"

-- transaction 7, committed 2026-11-21 08:15:00.000000Z
begin;
insert into "public"."t" ("id") overriding system value values ('1');
-- delete of an unknown row of "public"."t": the table had no replica identity
commit;

\connect "app"
select setval('"public"."it''s"', 42, true);
`
	if text.String() != want {
		t.Errorf("got\n%s", text.String())
	}
}
