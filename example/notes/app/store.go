// Package app is the notes example: an application as understudy finds them.
// Its rows are in PostgreSQL, its attachments in a folder, and it knows nothing of a
// cluster: it asks its own database whether it may write.
package app

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Note is one note.
type Note struct {
	ID         int64     `json:"id"`
	Text       string    `json:"text"`
	Attachment string    `json:"attachment,omitempty"` // the name that it was sent with
	Created    time.Time `json:"created"`

	file string // its name in the folder
}

// Digest sums up all notes at one moment.
type Digest struct {
	At       time.Time `json:"at"`
	Notes    int64     `json:"notes"`
	Checksum string    `json:"checksum"`
}

// ErrStandby is the error of a write on a node whose database takes none.
var ErrStandby = errors.New("this node is a standby; write to the active node")

// ErrUnavailable is the error of a database that does not answer. A write that
// ends with it may or may not have happened.
var ErrUnavailable = errors.New("the database does not answer")

// ErrNotFound is the error of a note, or an attachment, that does not exist.
var ErrNotFound = errors.New("there is no such note or attachment")

// ErrNotHere is the error of an attachment that exists, but not yet on this node.
var ErrNotHere = errors.New("the attachment has not arrived on this node yet")

// Store keeps notes.
type Store struct {
	pool  *pgxpool.Pool
	files string
}

// Open returns a store on a database and a folder. It does not connect yet.
func Open(ctx context.Context, database, files string) (*Store, error) {
	conf, err := pgxpool.ParseConfig(database)
	if err != nil {
		return nil, fmt.Errorf("read the database's address: %w", err)
	}
	conf.MaxConns = 4
	conf.ConnConfig.ConnectTimeout = 2 * time.Second
	pool, err := pgxpool.NewWithConfig(ctx, conf)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	return &Store{pool: pool, files: files}, nil
}

// Close gives all connections back.
func (s *Store) Close() { s.pool.Close() }

const schema = `
create schema if not exists notes;
create table if not exists notes.note (
	id         bigint generated always as identity primary key,
	text       text not null,
	attachment text not null default '',
	file       text not null default '',
	created    timestamptz not null default now()
);
create table if not exists notes.digest (
	at       timestamptz primary key default clock_timestamp(),
	notes    bigint not null,
	checksum text not null
)`

// createLock keeps two creators of the schema apart.
const createLock = 0x6e6f746573

// Create makes the tables where they are missing. On a standby the error wraps
// ErrStandby unless they are there.
func (s *Store) Create(ctx context.Context) error {
	return classify(pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var there, standby bool
		if err := tx.QueryRow(ctx, `select to_regclass('notes.digest') is not null, pg_is_in_recovery()`).Scan(&there, &standby); err != nil || there {
			return err
		}
		if standby {
			return ErrStandby
		}
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1)`, createLock); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, schema)
		return err
	}), "create tables")
}

// Writable says whether this node takes writes: nil, or an error that wraps
// ErrStandby or ErrUnavailable.
func (s *Store) Writable(ctx context.Context) error {
	var standby bool
	if err := s.pool.QueryRow(ctx, `select pg_is_in_recovery()`).Scan(&standby); err != nil {
		return classify(err, "look at the database")
	}
	if standby {
		return ErrStandby
	}
	return nil
}

// Add keeps a note. The attachment is durable before the row that names it is
// committed. Errors wrap ErrStandby or ErrUnavailable.
func (s *Store) Add(ctx context.Context, text, name string, attachment io.Reader) (Note, error) {
	if err := s.Writable(ctx); err != nil {
		return Note{}, err
	}
	n := Note{Text: text}
	if attachment != nil {
		n.Attachment, n.file = filepath.Base(name), rand.Text()+strings.ToLower(filepath.Ext(filepath.Base(name)))
		if err := s.keepFile(n.file, attachment); err != nil {
			return Note{}, err
		}
	}
	err := s.pool.QueryRow(ctx, `insert into notes.note (text, attachment, file) values ($1, $2, $3) returning id, created`,
		n.Text, n.Attachment, n.file).Scan(&n.ID, &n.Created)
	var refused *pgconn.PgError
	if errors.As(err, &refused) && n.file != "" {
		// The server has said no, so that nothing will name the file. After
		// any other error the row may be there.
		_ = os.Remove(filepath.Join(s.files, n.file))
	}
	return n, classify(err, "keep note")
}

// keepFile writes a file of the folder, synced.
func (s *Store) keepFile(name string, content io.Reader) (err error) {
	temp, err := os.CreateTemp(s.files, ".notes-*.tmp")
	if err != nil {
		return fmt.Errorf("keep attachment: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp.Name())
		}
	}()
	_, err = io.Copy(temp, content)
	err = errors.Join(err, temp.Chmod(0o644), temp.Sync(), temp.Close())
	if err != nil {
		return fmt.Errorf("keep attachment: %w", err)
	}
	if err := os.Rename(temp.Name(), filepath.Join(s.files, name)); err != nil {
		return fmt.Errorf("keep attachment: %w", err)
	}
	dir, err := os.Open(s.files)
	if err != nil {
		return fmt.Errorf("keep attachment: %w", err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("keep attachment: %w", err)
	}
	return nil
}

// List returns the newest notes first.
func (s *Store) List(ctx context.Context, limit int) ([]Note, error) {
	rows, err := s.pool.Query(ctx, `select id, text, attachment, file, created from notes.note order by id desc limit $1`, limit)
	if err != nil {
		return nil, classify(err, "list notes")
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Note, error) {
		var n Note
		return n, row.Scan(&n.ID, &n.Text, &n.Attachment, &n.file, &n.Created)
	})
	return list, classify(err, "list notes")
}

// Attachment opens the attachment of a note. The error wraps ErrNotFound or
// ErrNotHere.
func (s *Store) Attachment(ctx context.Context, id int64) (name string, file *os.File, err error) {
	var kept string
	err = s.pool.QueryRow(ctx, `select attachment, file from notes.note where id = $1`, id).Scan(&name, &kept)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && kept == "" {
		return "", nil, ErrNotFound
	}
	if err != nil {
		return "", nil, classify(err, "find attachment")
	}
	file, err = os.Open(filepath.Join(s.files, kept))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil, ErrNotHere
	}
	if err != nil {
		return "", nil, fmt.Errorf("open attachment: %w", err)
	}
	return name, file, nil
}

// digestsKept is how many digests stay.
const digestsKept = 1000

// Sum writes a digest of all notes and returns it.
func (s *Store) Sum(ctx context.Context) (Digest, error) {
	var d Digest
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `insert into notes.digest (notes, checksum)
			select count(*), md5(coalesce(string_agg(id || ':' || md5(text) || ':' || file, ',' order by id), '')) from notes.note
			returning at, notes, checksum`).Scan(&d.At, &d.Notes, &d.Checksum)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `delete from notes.digest where at <= (select at from notes.digest order by at desc offset $1 limit 1)`, digestsKept)
		return err
	})
	return d, classify(err, "write digest")
}

// PostgreSQL's code for a write where only reads are allowed.
const readOnlyTransaction = "25006"

// classify gives an error of the database its kind.
func classify(err error, what string) error {
	var p *pgconn.PgError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrStandby):
		return err
	case errors.As(err, &p) && p.Code == readOnlyTransaction:
		return fmt.Errorf("%s: %w", what, ErrStandby)
	case errors.As(err, &p) && !strings.HasPrefix(p.Code, "57P") && !strings.HasPrefix(p.Code, "28"):
		// 57P: it goes down or comes up; 28: it lets nobody in at present.
		return fmt.Errorf("%s: %w", what, err)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %w", what, ErrUnavailable, err)
}
