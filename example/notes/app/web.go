package app

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"html/template"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

//go:embed page.html
var pages embed.FS

var page = template.Must(template.ParseFS(pages, "page.html"))

const (
	maxRequest = 64 << 20 // bytes of a note with its attachment
	listed     = 100      // notes on the page and in the list
)

// Web serves notes until ctx ends. The tables are made as soon as the database
// takes writes.
func Web(ctx context.Context, s *Store, listen string, log *slog.Logger) error {
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: Handler(s, log), ReadHeaderTimeout: 5 * time.Second}
	creating, cancel := context.WithCancel(ctx)
	defer cancel()
	go createLater(creating, s, log)
	stop := context.AfterFunc(ctx, func() {
		grace, done := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer done()
		_ = server.Shutdown(grace)
	})
	defer stop()
	log.Info("serving", "listen", listener.Addr().String())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// retry is how often something that needs a writable database is tried.
const retry = time.Second

func createLater(ctx context.Context, s *Store, log *slog.Logger) {
	for {
		err := s.Create(ctx)
		if err == nil {
			log.Info("tables are there")
			return
		}
		log.Debug("create tables", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
	}
}

// Handler serves
//
//	GET  /                        a page
//	GET  /notes                   the newest notes, as JSON
//	POST /notes                   text, attachment (a form): 201 and the note
//	GET  /notes/{id}/attachment   the file
//
// A write on a standby, and anything while the database is away, is 503.
func Handler(s *Store, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(http.ResponseWriter, *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := f(w, r); err != nil {
				fail(w, r, err, log)
			}
		})
	}
	handle("GET /{$}", func(w http.ResponseWriter, r *http.Request) error { return showPage(s, w, r) })
	handle("GET /notes", func(w http.ResponseWriter, r *http.Request) error {
		list, err := s.List(r.Context(), listed)
		if err != nil {
			return err
		}
		return reply(w, http.StatusOK, list)
	})
	handle("POST /notes", func(w http.ResponseWriter, r *http.Request) error { return add(s, w, r) })
	handle("GET /notes/{id}/attachment", func(w http.ResponseWriter, r *http.Request) error { return attachment(s, w, r) })
	return mux
}

func reply(w http.ResponseWriter, code int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	return json.NewEncoder(w).Encode(v)
}

func fail(w http.ResponseWriter, r *http.Request, err error, log *slog.Logger) {
	code := http.StatusInternalServerError
	switch {
	case errors.Is(err, errBadRequest):
		code = http.StatusBadRequest
	case errors.Is(err, ErrNotFound):
		code = http.StatusNotFound
	case errors.Is(err, ErrStandby), errors.Is(err, ErrUnavailable), errors.Is(err, ErrNotHere):
		code = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "1")
	}
	log.Warn("request failed", "method", r.Method, "path", r.URL.Path, "code", code, "error", err)
	_ = reply(w, code, map[string]string{"error": err.Error()})
}

var errBadRequest = errors.New("a note needs a form with text, and optionally an attachment")

func add(s *Store, w http.ResponseWriter, r *http.Request) error {
	r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
	text := r.FormValue("text") // reads a multipart form too
	if strings.TrimSpace(text) == "" {
		return errBadRequest
	}
	var content io.Reader
	name := ""
	if file, header, err := r.FormFile("attachment"); err == nil {
		defer file.Close()
		// A browser sends an empty part when no file was chosen.
		if header.Filename != "" {
			content, name = file, header.Filename
		}
	}
	n, err := s.Add(r.Context(), text, name, content)
	if err != nil {
		return err
	}
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return nil
	}
	return reply(w, http.StatusCreated, n)
}

func attachment(s *Store, w http.ResponseWriter, r *http.Request) error {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		return ErrNotFound
	}
	name, file, err := s.Attachment(r.Context(), id)
	if err != nil {
		return err
	}
	defer file.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name}))
	w.Header().Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(w, r, "", time.Time{}, file)
	return nil
}

func showPage(s *Store, w http.ResponseWriter, r *http.Request) error {
	view := struct {
		Notes []Note
		State string // of this node, empty on the active one
	}{}
	if err := s.Writable(r.Context()); err != nil {
		view.State = err.Error()
	}
	var err error
	if view.Notes, err = s.List(r.Context(), listed); err != nil {
		view.State = err.Error()
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	return page.Execute(w, view)
}

// Worker writes a digest every second until ctx ends.
func Worker(ctx context.Context, s *Store, log *slog.Logger) error {
	every := time.NewTicker(retry)
	defer every.Stop()
	for {
		d, err := s.Sum(ctx)
		if err != nil && ctx.Err() == nil {
			log.Warn("write digest", "error", err)
			if err := s.Create(ctx); err != nil && ctx.Err() == nil {
				log.Warn("create tables", "error", err)
			}
		} else if err == nil {
			log.Debug("digest", "notes", d.Notes, "checksum", d.Checksum)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
		}
	}
}
