// Command play makes the cluster of docs/operations.md on whole machines, and keeps
// it for somebody to play with until it is interrupted. "make lab" runs it.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/understudy-ha/understudy/docs"
	"github.com/understudy-ha/understudy/hosts"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := play(ctx); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func play(ctx context.Context) (err error) {
	h, err := hosts.Raise(ctx, hosts.Options{
		Tree: ".", Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Say: func(format string, args ...any) { fmt.Printf(format+"\n", args...) },
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	if _, err := h.Install(ctx); err != nil {
		return err
	}
	if err := h.Balance(ctx); err != nil {
		return err
	}
	fmt.Println("\nThe cluster is there. A shell, as root, on each host:")
	for _, name := range append(docs.Members, hosts.Balancer) {
		fmt.Printf("  %-6s %s  sudo %s\n", name, h.ByName[name].Address, strings.Join(h.ByName[name].Shell(), " "))
	}
	fmt.Printf("Clients of the database connect to %s.\nCtrl-C switches all hosts off and deletes them.\n", h.Client().DSN)
	<-ctx.Done()
	return nil
}
