package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/dev"
	"github.com/understudy-ha/understudy/dev/probe"
)

// Pgbench compares PostgreSQL in the cluster with the same one by hand.
type Pgbench struct {
	Scale    int       `json:"scale"`
	Clients  int       `json:"clients"`
	Seconds  int       `json:"seconds"` // of each run
	Cluster  []float64 `json:"cluster_tps"`
	ByHand   []float64 `json:"by_hand_tps"`
	Ratio    float64   `json:"ratio"` // of the medians
	Target   float64   `json:"target_ratio"`
	Settings []string  `json:"settings"` // of both
}

const (
	scale        = 10
	clients      = 4
	benchSeconds = 20
)

// pgbench runs pgbench's own script in turn on the cluster's active and on a
// primary with as many synchronous standbys and the same settings.
func (b *bench) pgbench(ctx context.Context) error {
	status, err := b.healthy(ctx, 0)
	if err != nil {
		return err
	}
	active, _ := b.rig.Node(status.Active)
	opened, err := dev.Open(b.Dir)
	if err != nil {
		return err
	}
	cluster := instance{address: active.Address, port: active.Postgres.Port}
	settings, err := settingsOf(ctx, cluster)
	if err != nil {
		return err
	}
	b.say("making a PostgreSQL with %d standbys by hand", len(status.Standbys()))
	hand, err := makeByHand(ctx, handSpec{
		Dir: filepath.Join(b.Dir, "by-hand"), Bin: opened.PostgresBin, Settings: settings, Addresses: addresses(b.rig.Nodes),
	})
	if err != nil {
		return err
	}
	defer hand.remove()
	out := &Pgbench{Scale: scale, Clients: clients, Seconds: benchSeconds, Target: 0.95, Settings: settings}
	tool := filepath.Join(opened.PostgresBin, "pgbench")
	sides := []struct {
		name string
		at   instance
		tps  *[]float64
	}{{"the cluster", cluster, &out.Cluster}, {"by hand", hand.primary, &out.ByHand}}
	for _, side := range sides {
		if _, err := runPgbench(ctx, tool, side.at, "-i", "-q", "-s", strconv.Itoa(scale)); err != nil {
			return fmt.Errorf("fill the tables, %s: %w", side.name, err)
		}
	}
	for run := range b.Runs {
		for _, side := range sides {
			if err := checkpoint(ctx, side.at); err != nil {
				return err
			}
			text, err := runPgbench(ctx, tool, side.at, "-n", "-c", strconv.Itoa(clients), "-j", "2", "-T", strconv.Itoa(benchSeconds))
			if err != nil {
				return err
			}
			tps, err := parseTPS(text)
			if err != nil {
				return err
			}
			*side.tps = append(*side.tps, tps)
			b.say("pgbench %d of %d, %s: %.0f transactions a second", run+1, b.Runs, side.name, tps)
		}
	}
	out.Ratio = probe.Median(out.Cluster) / probe.Median(out.ByHand)
	b.report.Pgbench = out
	return nil
}

// instance is a PostgreSQL that trusts whoever comes over loopback.
type instance struct {
	address string
	port    int
}

func (i instance) dsn() string {
	return "postgresql://postgres@" + net.JoinHostPort(i.address, strconv.Itoa(i.port)) + "/postgres?sslmode=disable"
}

func addresses(nodes []dev.NodeInfo) []string {
	var list []string
	for _, n := range nodes {
		list = append(list, n.Address)
	}
	return list
}

// places are settings that say where something is, who talks to whom, or that
// can only be read: both sides have their own. TLS is not among them: both sides
// encrypt what they replicate.
var places = regexp.MustCompile(`^(data_directory|config_file|hba_file|ident_file|external_pid_file|unix_socket_directories|listen_addresses|port|` +
	`primary_.*|synchronous_standby_names|cluster_name|understudy\..*|log_.*|restart_after_crash)$`)

// settingsOf returns the settings that were made for an instance and that may
// matter for its speed, as lines of postgresql.conf.
func settingsOf(ctx context.Context, i instance) ([]string, error) {
	var lines []string
	err := with(ctx, i, func(c *pgx.Conn) error {
		rows, err := c.Query(ctx, `select name, current_setting(name) from pg_settings where source = 'configuration file' order by name`)
		if err != nil {
			return err
		}
		var name, value string
		_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error {
			if !places.MatchString(name) {
				lines = append(lines, fmt.Sprintf("%s = '%s'", name, strings.ReplaceAll(value, "'", "''")))
			}
			return nil
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the cluster's settings: %w", err)
	}
	return lines, nil
}

func with(ctx context.Context, i instance, do func(*pgx.Conn) error) error {
	c, err := pgx.Connect(ctx, i.dsn())
	if err != nil {
		return err
	}
	defer c.Close(context.WithoutCancel(ctx))
	return do(c)
}

func checkpoint(ctx context.Context, i instance) error {
	return with(ctx, i, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, "checkpoint")
		return err
	})
}

func runPgbench(ctx context.Context, tool string, i instance, args ...string) (string, error) {
	command := exec.CommandContext(ctx, tool, append(args, "-h", i.address, "-p", strconv.Itoa(i.port), "-U", "postgres", "postgres")...)
	command.Env = append(os.Environ(), "PGSSLMODE=disable", "LC_ALL=C")
	out, err := command.CombinedOutput()
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return "", fmt.Errorf("pgbench %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

var tpsLine = regexp.MustCompile(`(?m)^tps = ([0-9.]+) \(without initial connection time\)$`)

// parseTPS finds the result in the output of pgbench 14 or newer.
func parseTPS(text string) (float64, error) {
	m := tpsLine.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("read pgbench's result: no tps in %q", text)
	}
	return strconv.ParseFloat(m[1], 64)
}

func (p Pgbench) print(w io.Writer) {
	fmt.Fprintf(w, "\npgbench, scale %d, %d clients, %d s, in turn: %.0f transactions a second in the cluster, %.0f by hand\n",
		p.Scale, p.Clients, p.Seconds, probe.Median(p.Cluster), probe.Median(p.ByHand))
	fmt.Fprintf(w, "ratio of the medians %.2f (target %.2f)\n", p.Ratio, p.Target)
}
