package demo

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/dev/timeline"
	"github.com/understudy-ha/understudy/example/notes/app"
	"github.com/understudy-ha/understudy/pgrepl/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func sound(nodes ...string) (found []probe.Finding) {
	for _, n := range nodes {
		found = append(found, probe.Finding{Node: n, Rows: 3})
	}
	return found
}

func TestVerdict(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*sum)
		lost   bool   // wraps ErrLost
		want   string // part of the error; empty: none
	}{
		"all there":                  {func(*sum) {}, false, ""},
		"a row is lost on a standby": {func(s *sum) { s.found[2].Lost = []int64{7} }, true, "on c 1 rows are lost"},
		"a row is there twice":       {func(s *sum) { s.found[0].Twice = []int64{7} }, true, "1 are there twice"},
		"a row that was refused":     {func(s *sum) { s.found[0].Uncalled = []int64{7} }, true, "1 should not be there"},
		"a node was not looked at":   {func(s *sum) { s.found = s.found[:2] }, false, "on 2 of 3 nodes only"},
		"the note is gone":           {func(s *sum) { s.noteProblem = errors.New("note 1 is not there") }, true, "note 1 is not there"},
	} {
		s := sum{found: sound("a", "b", "c")}
		c.change(&s)
		err := s.verdict(3)
		if (err == nil) != (c.want == "") || errors.Is(err, ErrLost) != c.lost || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLossIsNoTimeout(t *testing.T) {
	s := sum{found: sound("a"), noteProblem: context.DeadlineExceeded}
	if err := s.verdict(1); errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a note that is lost would end with the exit code of a timeout: %v", err)
	}
}

func TestSumInPrint(t *testing.T) {
	j := probe.Journal{Acks: make([]probe.Ack, 1200), Indeterminate: []int64{5, 6}}
	s := sum{journal: j, found: sound("a", "b"), longest: 480 * time.Millisecond, took: 41 * time.Second}
	s.found[0].Landed = 1
	for want, change := range map[string]func(){
		"1200 acknowledged, 2 indeterminate (1 of them are there), 0 lost": func() {},
		"480 ms at the longest":                      func() {},
		"the note and its attachment are on every":   func() {},
		"row by row on a, b, after all":              func() {},
		"2 LOST":                                     func() { s.found[0].Lost, s.found[1].Lost = []int64{3, 4}, []int64{4} },
		"note 1 is not there":                        func() { s.noteProblem = errors.New("note 1 is not there") },
		"row by row on no node, after all of them h": func() { s.found = nil },
	} {
		kept := s
		kept.found = append([]probe.Finding(nil), s.found...)
		change()
		var b strings.Builder
		s.print(&b, timeline.Style{})
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in\n%s", want, b.String())
		}
		s = kept
	}
}

func TestStepsLeaveOutWhatCommandsSay(t *testing.T) {
	var b strings.Builder
	s := &steps{to: &b}
	for _, line := range []string{"[  0.1s] nodes are up\n", "[  0.2s] node1 | ok  start Consul (0.1 s)\n"} {
		if n, err := s.Write([]byte(line)); n != len(line) || err != nil {
			t.Errorf("wrote %d of %d: %v", n, len(line), err)
		}
	}
	if b.String() != "[  0.1s] nodes are up\n" {
		t.Errorf("%q", b.String())
	}
}

// manager is the example manager on a database of its own.
func manager(t *testing.T) (url, files string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	pg := pgtest.New(t, "127.10.8.1")
	pg.Start(t)
	files = t.TempDir()
	store, err := app.Open(ctx, pg.DSN(), files)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	if err := store.Create(ctx); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(app.Handler(store, slog.New(slog.DiscardHandler)))
	t.Cleanup(server.Close)
	return server.URL, files
}

func TestNotes(t *testing.T) {
	url, files := manager(t)
	ctx, n := context.Background(), newNotes()
	id, err := n.add(ctx, url, noteText, "shopping.txt", attachment)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.check(ctx, url, id, noteText, attachment); err != nil {
		t.Errorf("a note that is there: %v", err)
	}
	for what, err := range map[string]error{
		"note 9 is not among": n.check(ctx, url, 9, noteText, attachment),
		"is not among":        n.check(ctx, url, id, "Forget the milk.", attachment),
		"bytes are not the":   n.check(ctx, url, id, noteText, attachment[1:]),
	} {
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%q is wanted: %v", what, err)
		}
	}
	kept, err := filepath.Glob(filepath.Join(files, "*.txt"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("%q, %v", kept, err)
	}
	if err := os.Remove(kept[0]); err != nil {
		t.Fatal(err)
	}
	if err := n.check(ctx, url, id, noteText, attachment); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("an attachment that is not there: %v", err)
	}
}

func TestNotesFromNobody(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	if _, err := newNotes().add(context.Background(), server.URL, noteText, "a.txt", nil); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("got %v", err)
	}
}

func TestRetryGivesTheLastError(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	tries, gone := 0, errors.New("gone")
	err := retry(ctx, func() error {
		if tries++; tries == 3 {
			cancel()
		}
		return gone
	})
	if !errors.Is(err, gone) || !errors.Is(err, context.Canceled) || tries != 3 {
		t.Errorf("%v after %d tries", err, tries)
	}
}
