// Command notes is the example application: see package app.
//
//	notes web     serves the notes on every node
//	notes worker  writes digests, on the active node only
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/understudy-ha/understudy/example/notes/app"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "notes:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("notes", flag.ContinueOnError)
	listen := flags.String("listen", env("NOTES_LISTEN", "127.0.0.1:8080"), "address of the web server")
	database := flags.String("database", env("NOTES_DATABASE", "postgresql:///postgres?host=/run/postgresql"), "connection string of this node's PostgreSQL")
	files := flags.String("files", env("NOTES_FILES", "/var/lib/notes/files"), "folder of attachments")
	if len(args) == 0 || (args[0] != "web" && args[0] != "worker") {
		return fmt.Errorf("want 'notes web' or 'notes worker', with -listen, -database, -files")
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	store, err := app.Open(ctx, *database, *files)
	if err != nil {
		return err
	}
	defer store.Close()
	if args[0] == "web" {
		return app.Web(ctx, store, *listen, log)
	}
	return app.Worker(ctx, store, log)
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
