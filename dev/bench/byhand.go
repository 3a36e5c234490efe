package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// handSpec says what makeByHand makes.
type handSpec struct {
	Dir       string
	Bin       string   // folder of PostgreSQL's binaries
	Settings  []string // lines of postgresql.conf
	Addresses []string // of the primary, and of each standby
}

// byHand is a primary with standbys, any one of which confirms its commits, as
// an operator makes them with initdb and pg_basebackup.
type byHand struct {
	handSpec
	primary instance
	as      *syscall.Credential
	servers []*server
}

// makeByHand makes and starts the servers. They end with remove, or with this
// process.
func makeByHand(ctx context.Context, spec handSpec) (h *byHand, err error) {
	h = &byHand{handSpec: spec}
	if h.as, err = postgresCredential(); err != nil {
		return nil, fmt.Errorf("configure PostgreSQL by hand: %w", err)
	}
	if err := h.make(ctx); err != nil {
		h.remove()
		return nil, fmt.Errorf("configure PostgreSQL by hand: %w", err)
	}
	return h, nil
}

func (h *byHand) make(ctx context.Context) error {
	if err := os.MkdirAll(h.Dir, 0o755); err != nil {
		return err
	}
	if h.as != nil {
		if err := os.Chown(h.Dir, int(h.as.Uid), int(h.as.Gid)); err != nil {
			return err
		}
	}
	for i, address := range h.Addresses {
		port, err := freePort(address)
		if err != nil {
			return err
		}
		at, data := instance{address, port}, filepath.Join(h.Dir, strconv.Itoa(i))
		if i == 0 {
			h.primary = at
			err = h.run(ctx, "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
		} else {
			err = h.run(ctx, "pg_basebackup", "-D", data, "-h", h.primary.address, "-p", strconv.Itoa(h.primary.port), "-U", "postgres",
				"-R", "-C", "-S", standbyName(i), "-c", "fast", "-X", "stream", "--no-sync")
		}
		if err != nil {
			return err
		}
		if err := h.configure(data, at, i); err != nil {
			return err
		}
		if err := h.start(ctx, data, at); err != nil {
			return err
		}
	}
	return h.awaitQuorum(ctx)
}

func standbyName(i int) string { return "hand" + strconv.Itoa(i) }

// configure writes a file that overrules postgresql.conf, and lets everybody on
// this machine in.
func (h *byHand) configure(data string, at instance, i int) error {
	var standbys []string
	for s := 1; s < len(h.Addresses); s++ {
		standbys = append(standbys, standbyName(s))
	}
	lines := append(slices.Clone(h.Settings),
		fmt.Sprintf("listen_addresses = '%s'", at.address), fmt.Sprintf("port = %d", at.port), "unix_socket_directories = ''",
		fmt.Sprintf("cluster_name = '%s'", standbyName(i)),
		fmt.Sprintf("synchronous_standby_names = 'ANY 1 (%s)'", strings.Join(standbys, ", ")))
	if err := os.WriteFile(filepath.Join(data, "by-hand.conf"), []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	if i > 0 {
		return nil // the base backup has the rest
	}
	conf, err := os.OpenFile(filepath.Join(data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = conf.WriteString("\ninclude 'by-hand.conf'\n")
	return errors.Join(err, conf.Close())
}

// run runs one of PostgreSQL's programs.
func (h *byHand) run(ctx context.Context, program string, args ...string) error {
	command := exec.CommandContext(ctx, filepath.Join(h.Bin, program), args...)
	command.Dir, command.SysProcAttr = h.Dir, &syscall.SysProcAttr{Credential: h.as}
	command.Env = append(os.Environ(), "LC_ALL=C", "HOME="+h.Dir)
	if slices.Contains(h.Settings, "ssl = 'on'") {
		command.Env = append(command.Env, "PGSSLMODE=require") // pg_basebackup -R hands it on to the standby
	}
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// server is one postmaster, a child of ours.
type server struct {
	process *os.Process
	done    chan struct{}
}

const (
	startWithin = 30 * time.Second
	stopWithin  = 10 * time.Second
)

// start starts a server and waits until it answers.
func (h *byHand) start(ctx context.Context, data string, at instance) error {
	log, err := os.OpenFile(data+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	command := exec.Command(filepath.Join(h.Bin, "postgres"), "-D", data)
	command.Dir, command.Stdout, command.Stderr = h.Dir, log, log
	// Its receivers look for certificates in their home, and do without TLS
	// where they may not.
	command.Env = append(os.Environ(), "LC_ALL=C", "HOME="+h.Dir)
	// It dies with this process. Ctrl-C is for us, who then stop it.
	command.SysProcAttr = &syscall.SysProcAttr{Credential: h.as, Setpgid: true, Pdeathsig: syscall.SIGQUIT}
	s, started := &server{done: make(chan struct{})}, make(chan error, 1)
	go func() {
		// The signal comes when the thread ends that started it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(s.done)
		defer log.Close()
		err := command.Start()
		started <- err
		if err == nil {
			_ = command.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	s.process = command.Process
	h.servers = append(h.servers, s)
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	for {
		err := with(ctx, at, func(c *pgx.Conn) error { return c.Ping(ctx) })
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("start the server in %s: %w: %w", data, ctx.Err(), err)
		case <-s.done:
			text, _ := os.ReadFile(data + ".log")
			return fmt.Errorf("start the server in %s: it has ended: %s", data, strings.TrimSpace(string(text)))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// awaitQuorum waits until every standby counts for commits.
func (h *byHand) awaitQuorum(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	return with(ctx, h.primary, func(c *pgx.Conn) error {
		for {
			var n int
			if err := c.QueryRow(ctx, `select count(*) from pg_stat_replication where sync_state = 'quorum'`).Scan(&n); err != nil {
				return fmt.Errorf("wait for the standbys: %w", err)
			}
			if n == len(h.Addresses)-1 {
				return nil
			}
			if err := pause(ctx, 20*time.Millisecond); err != nil {
				return fmt.Errorf("wait for the standbys: %d have come: %w", n, err)
			}
		}
	})
}

// remove stops the servers, the primary last, and deletes them.
func (h *byHand) remove() {
	for _, s := range slices.Backward(h.servers) {
		_ = s.process.Signal(syscall.SIGINT)
		select {
		case <-s.done:
			continue
		case <-time.After(stopWithin):
		}
		_ = s.process.Signal(syscall.SIGQUIT)
		<-s.done
	}
	_ = os.RemoveAll(h.Dir)
}

func freePort(address string) (int, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return 0, fmt.Errorf("find a port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// postgresCredential is that of the user postgres when this process is root,
// which PostgreSQL refuses to run as; else nil.
func postgresCredential() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	who, err := user.Lookup("postgres")
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(who.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(who.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}
