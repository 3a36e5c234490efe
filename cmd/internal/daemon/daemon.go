// Package daemon is what the mains of all daemons have in common.
package daemon

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/understudy-ha/understudy/node"
	"github.com/understudy-ha/understudy/services"
)

// Main runs the named daemon on the member whose paths are under --root, until
// SIGTERM or Ctrl-C ends ctx, and exits: with code 0, or 1 after an error, which
// goes to standard error. systemd is told that it runs, and that it is not frozen.
func Main(name string, run func(ctx context.Context, h *node.Host) error) {
	root := flag.String("root", "/", "directory that all paths of the node are under")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	host, err := node.OpenMember(*root, name)
	if err == nil {
		go services.TellAlive(ctx)
		err = run(ctx, host)
	}
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}
