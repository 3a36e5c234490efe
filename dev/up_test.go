package dev

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
)

func TestUpRunsTheOperatorsCommands(t *testing.T) {
	dir := filepath.Join(tempDir(t), "c")
	var out bytes.Buffer
	opts := UpOptions{Dir: dir, Nodes: 2, FirstAddress: "127.10.4.61", Options: []string{"sync_mode=strict", "priority=1"}, Bin: binDir(t), Progress: &out}
	t.Cleanup(func() {
		if err := Down(context.Background(), dir, false); err != nil {
			t.Errorf("down: %v", err)
		}
		_ = os.Remove(filepath.Join(dir, "commands"))
	})
	// The join fails: the same again goes on from there.
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c, err := plan(opts)
	if err != nil {
		t.Fatal(err)
	}
	fail := filepath.Join(c.Dir, "fail")
	if err := os.WriteFile(fail, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = Up(t.Context(), opts)
	if err == nil || !strings.Contains(err.Error(), "on node2, understudy cluster join: exit status 1: no disk") {
		t.Fatalf("a join that fails: %v", err)
	}
	if err := os.Remove(fail); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := Up(t.Context(), opts); err != nil {
			t.Fatal(err)
		}
	}
	commands, err := os.ReadFile(filepath.Join(dir, "commands"))
	if err != nil {
		t.Fatal(err)
	}
	join := "node1 cluster token create --node node2 --json\n" +
		"node2 cluster join --cluster-host-ip 127.10.4.62 --cluster-node-name node2 --token secret 127.10.4.61\n"
	want := "node1 cluster start --cluster-host-ip 127.10.4.61 --cluster-node-name node1 --options sync_mode=strict --options priority=1\n" + join + join
	if string(commands) != want {
		t.Errorf("commands:\n%s\nwant:\n%s", commands, want)
	}
	if strings.Contains(out.String(), "secret") || !strings.Contains(out.String(), "node2 | done") {
		t.Errorf("progress:\n%s", out.String())
	}
	if _, err := Up(t.Context(), UpOptions{Dir: dir, Nodes: 3}); !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "of 2 nodes") {
		t.Errorf("up with another number of nodes: %v", err)
	}
}

// A runner is asked in as one, and gets no PostgreSQL.
func TestUpWithRunners(t *testing.T) {
	dir := filepath.Join(tempDir(t), "c")
	opts := UpOptions{Dir: dir, Nodes: 1, Runners: 1, FirstAddress: "127.61.2.11", Bin: binDir(t)}
	t.Cleanup(func() {
		if err := Down(context.Background(), dir, false); err != nil {
			t.Errorf("down: %v", err)
		}
		_ = os.Remove(filepath.Join(dir, "commands"))
	})
	c, err := Up(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	commands, err := os.ReadFile(filepath.Join(dir, "commands"))
	if err != nil {
		t.Fatal(err)
	}
	want := "node1 cluster start --cluster-host-ip 127.61.2.11 --cluster-node-name node1\n" +
		"node1 cluster token create --node runner1 --json --kind runner\n" +
		"runner1 cluster join --cluster-host-ip 127.61.2.12 --cluster-node-name runner1 --token secret --kind runner 127.61.2.11\n"
	if string(commands) != want {
		t.Errorf("commands:\n%s\nwant:\n%s", commands, want)
	}
	manager, runner := describe(t, c, "node1"), describe(t, c, "runner1")
	if manager.Kind != cluster.Manager || manager.Postgres.DSN == "" || manager.Pids["postgres"] == 0 {
		t.Errorf("node1: %+v", manager)
	}
	if runner.Kind != cluster.Runner || runner.Postgres != (PostgresInfo{}) || runner.State != StateUp || len(runner.Pids) != 1 {
		t.Errorf("runner1: %+v", runner)
	}
	conf, err := config.Load(c.Nodes[1].Root)
	if err != nil || conf.Node.Kind != cluster.Runner || len(conf.Services.Leader) != 0 || len(conf.Services.Always) != 1 {
		t.Errorf("its configuration: %+v, %v", conf, err)
	}
	if _, err := os.Stat(filepath.Join(c.Nodes[1].Root, "var/lib/postgresql")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it has a PostgreSQL: %v", err)
	}
	if text, code := run(t, "info", "--dir", dir); code != 0 || !strings.Contains(text, "127.61.2.12:8008/status  - ") {
		t.Errorf("info: %d\n%s", code, text)
	}
	opts.Runners = 2
	if _, err := Up(t.Context(), opts); !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "of 1 nodes and 1 runners") {
		t.Errorf("up with another number of runners: %v", err)
	}
}

func TestUpRefuses(t *testing.T) {
	full := tempDir(t)
	if err := os.WriteFile(filepath.Join(full, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp4", "127.10.4.65:8009")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	bin := binDir(t)
	for name, c := range map[string]struct {
		opts UpOptions
		want string
	}{
		"a folder with other files": {UpOptions{Dir: full, Bin: bin}, "holds other files"},
		"no nodes":                  {UpOptions{Dir: full, Nodes: -1, Bin: bin}, "1 to 9 nodes"},
		"runners":                   {UpOptions{Dir: tempDir(t), Runners: -1, Bin: bin}, "0 to 9 runners"},
		"a port in use":             {UpOptions{Dir: tempDir(t), Bin: bin, FirstAddress: "127.10.4.64"}, "port 8009 on 127.10.4.65 is in use by process "},
		"an address of a network":   {UpOptions{Dir: tempDir(t), Bin: bin, FirstAddress: "10.0.0.1"}, "not an IPv4 address of 127.0.0.0/8"},
		"no binaries":               {UpOptions{Dir: tempDir(t), Bin: tempDir(t)}, "no handler-runner in"},
	} {
		if _, err := Up(t.Context(), c.opts); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestInstallRefuses(t *testing.T) {
	postgres, err := findPostgres("/usr/lib/postgresql")
	if err != nil {
		t.Fatal(err)
	}
	long := NodeSpec{Root: "/tmp/" + strings.Repeat("x", longestRoot), Name: "node1", PostgresBin: postgres}
	if err := Install(t.Context(), long); !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "too long") {
		t.Errorf("a long path: %v", err)
	}
	closed := tempDir(t)
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	err = traversable(filepath.Join(closed, "node1"))
	if os.Geteuid() == 0 && (!errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "cannot enter "+closed)) {
		t.Errorf("a folder that PostgreSQL cannot enter: %v", err)
	}
	if os.Geteuid() != 0 && err != nil {
		t.Errorf("one's own folder: %v", err)
	}
}

// run runs a dev command line and returns what it prints, and its exit code.
func run(t *testing.T, args ...string) (string, int) {
	t.Helper()
	var out bytes.Buffer
	app := &cli.App{Commands: []*cli.Command{Commands()}, Writer: &out, ErrWriter: &out, ExitErrHandler: func(*cli.Context, error) {}}
	err := app.RunContext(t.Context(), append([]string{"understudy", "dev"}, args...))
	var coded cli.ExitCoder
	if errors.As(err, &coded) {
		return out.String() + err.Error(), coded.ExitCode()
	}
	if err != nil {
		return out.String() + err.Error(), 1
	}
	return out.String(), 0
}

func TestCommands(t *testing.T) {
	c := installed(t, "127.10.4.67", 1)
	ask(t, c.Nodes[0], "select 'up'")
	text, code := run(t, "info", "--json", "--dir", c.Dir)
	var info Info
	if err := json.Unmarshal([]byte(text), &info); err != nil || code != 0 || len(info.Nodes) != 1 || info.Nodes[0].Address != "127.10.4.67" {
		t.Errorf("info --json: %d %s, %v", code, text, err)
	}
	for name, test := range map[string]struct {
		args []string
		code int
		want string
	}{
		"info":                     {[]string{"info"}, 0, "NAME   ADDRESS"},
		"no such node":             {[]string{"freeze", "node9"}, 2, "its nodes are node1"},
		"no such component":        {[]string{"kill", "node1", "nothing"}, 1, "no such unit"},
		"flags after arguments":    {[]string{"logs", "node1", "--lines", "1"}, 0, "node1 postgresql"},
		"an argument too many":     {[]string{"start", "node1", "node2"}, 2, "want 'understudy dev start NODE'"},
		"an argument too few":      {[]string{"cut", "node1"}, 2, "want 'understudy dev cut A B"},
		"a flag that is not there": {[]string{"cut", "node1", "node2", "--softly"}, 2, "there is no flag --softly"},
		"a flag without its value": {[]string{"logs", "node1", "--lines"}, 2, "--lines needs a value"},
	} {
		full := append([]string{test.args[0], "--dir", c.Dir}, test.args[1:]...)
		if text, code := run(t, full...); code != test.code || !strings.Contains(text, test.want) {
			t.Errorf("%s: exit code %d, want %d:\n%s", name, code, test.code, text)
		}
	}
	if text, code := run(t, "info", "--dir", tempDir(t)); code != 1 || !strings.Contains(text, "'understudy dev up' makes one") {
		t.Errorf("info without a cluster: %d %s", code, text)
	}
	for _, command := range Commands().Subcommands {
		if text, code := run(t, command.Name, "--help"); code != 0 || !command.Hidden && !strings.Contains(text, "Example:\n   ") {
			t.Errorf("%s --help: %d %s", command.Name, code, text)
		}
	}
}
