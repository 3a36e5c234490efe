package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/pgrepl/pgtest"
)

const address = "127.10.4.31"

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func open(t *testing.T, dsn string) *Store {
	t.Helper()
	s, err := Open(t.Context(), dsn, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func serve(t *testing.T, s *Store) string {
	t.Helper()
	server := httptest.NewServer(Handler(s, slog.New(slog.DiscardHandler)))
	t.Cleanup(server.Close)
	return server.URL
}

// post sends a note as a browser's form does and returns the answer.
func post(t *testing.T, url, text, name, content string) (int, []byte) {
	t.Helper()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	if err := form.WriteField("text", text); err != nil {
		t.Fatal(err)
	}
	if name != "" {
		part, err := form.CreateFormFile("attachment", name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(part, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := form.Close(); err != nil {
		t.Fatal(err)
	}
	response, err := http.Post(url+"/notes", form.FormDataContentType(), &body)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, response)
}

func get(t *testing.T, url string) (int, []byte) {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, response)
}

func read(t *testing.T, response *http.Response) (int, []byte) {
	t.Helper()
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, body
}

func TestNotes(t *testing.T) {
	db := pgtest.New(t, address)
	db.Start(t)
	s := open(t, db.DSN())
	for range 2 {
		if err := s.Create(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	url := serve(t, s)

	code, body := post(t, url, "hello", "../a b.TXT", "content")
	var made Note
	if err := json.Unmarshal(body, &made); err != nil || code != http.StatusCreated {
		t.Fatalf("post: %d %s, %v", code, body, err)
	}
	if made.Text != "hello" || made.Attachment != "a b.TXT" || made.ID == 0 || made.Created.IsZero() {
		t.Errorf("post: %+v", made)
	}
	if code, body := post(t, url, "<script>", "", ""); code != http.StatusCreated {
		t.Errorf("post without attachment: %d %s", code, body)
	}
	if code, body := post(t, url, "  ", "", ""); code != http.StatusBadRequest {
		t.Errorf("post without text: %d %s", code, body)
	}

	code, body = get(t, url+"/notes")
	var list []Note
	if err := json.Unmarshal(body, &list); err != nil || code != http.StatusOK || len(list) != 2 || list[1].ID != made.ID {
		t.Errorf("list: %d %s, %v", code, body, err)
	}
	file := url + "/notes/" + strconv.FormatInt(made.ID, 10) + "/attachment"
	if code, body := get(t, file); code != http.StatusOK || string(body) != "content" {
		t.Errorf("attachment: %d %s", code, body)
	}
	if code, _ := get(t, url+"/notes/999/attachment"); code != http.StatusNotFound {
		t.Errorf("attachment of no note: %d", code)
	}
	code, body = get(t, url+"/")
	if code != http.StatusOK || !strings.Contains(string(body), "hello") || strings.Contains(string(body), "<script>") {
		t.Errorf("page: %d %s", code, body)
	}

	// The record is there before the file: that is not "not found".
	kept, err := filepath.Glob(filepath.Join(s.files, "*"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("files: %q, %v", kept, err)
	}
	if err := os.Remove(kept[0]); err != nil {
		t.Fatal(err)
	}
	if code, body := get(t, file); code != http.StatusServiceUnavailable || !strings.Contains(string(body), ErrNotHere.Error()) {
		t.Errorf("attachment before its file: %d %s", code, body)
	}

	first, err := s.Sum(t.Context())
	if err != nil || first.Notes != 2 {
		t.Errorf("digest: %+v, %v", first, err)
	}
	post(t, url, "another", "", "")
	second, err := s.Sum(t.Context())
	if err != nil || second.Notes != 3 || second.Checksum == first.Checksum {
		t.Errorf("digest after another note: %+v, %v", second, err)
	}
}

func TestStandbyTakesNoWrites(t *testing.T) {
	db := pgtest.New(t, address)
	db.Start(t)
	s := open(t, db.DSN())
	if err := s.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	url := serve(t, s)
	if code, body := post(t, url, "before", "", ""); code != http.StatusCreated {
		t.Fatalf("post: %d %s", code, body)
	}
	db.Stop(t)
	if code, body := post(t, url, "meanwhile", "a.txt", "x"); code != http.StatusServiceUnavailable || !strings.Contains(string(body), ErrUnavailable.Error()) {
		t.Errorf("post without a database: %d %s", code, body)
	}
	if err := os.WriteFile(filepath.Join(db.DataDir, "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	db.Start(t)
	if code, body := post(t, url, "after", "a.txt", "x"); code != http.StatusServiceUnavailable || !strings.Contains(string(body), ErrStandby.Error()) {
		t.Errorf("post to a standby: %d %s", code, body)
	}
	if kept, _ := filepath.Glob(filepath.Join(s.files, "*")); len(kept) != 0 {
		t.Errorf("a refused note left files: %q", kept)
	}
	if _, err := s.Sum(t.Context()); !errors.Is(err, ErrStandby) {
		t.Errorf("digest on a standby: %v", err)
	}
	if err := s.Create(t.Context()); err != nil {
		t.Errorf("tables that are there, on a standby: %v", err)
	}
	code, body := get(t, url+"/")
	if code != http.StatusOK || !strings.Contains(string(body), ErrStandby.Error()) || !strings.Contains(string(body), "before") {
		t.Errorf("page of a standby: %d %s", code, body)
	}
}

// web and worker come up before the database does and create what they need.
func TestWebAndWorker(t *testing.T) {
	db := pgtest.New(t, address)
	s := open(t, db.DSN())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	log := slog.New(slog.DiscardHandler)
	go func() { ended <- Web(ctx, s, address+":0", log) }()
	go func() { ended <- Worker(ctx, s, log) }()
	db.Start(t)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var n int
		if err := s.pool.QueryRow(t.Context(), `select count(*) from notes.digest`).Scan(&n); err == nil && n >= 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the worker writes no digests")
		}
	}
	cancel()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
