package pgrepl_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/pgrepl/pgtest"
)

// TestObserveTellsStatesApart: down, starting, up, frozen.
func TestObserveTellsStatesApart(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a := newPrimary(t, pgtest.NewCA(t), "node-a", "127.10.2.11")
	o := a.Observe(ctx)
	if o.State != pgrepl.StateUp || o.Primary != cluster.Yes || o.Position.LSN == 0 || o.SystemID == "" || !a.Complete() {
		t.Errorf("up: %+v", o)
	}
	must(t, a.Ping(ctx))
	must(t, a.Select1(ctx))

	a.Freeze(t)
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	if o := a.Observe(short); o.State != pgrepl.StateUnknown || o.Primary != cluster.Unknown || o.Problem == "" {
		t.Errorf("frozen: %+v", o)
	}
	cancel()
	a.Thaw(t)
	await(t, "the server answers again", func() bool { return a.Observe(ctx).State == pgrepl.StateUp })

	a.Kill(t)
	if o := a.Observe(ctx); o.State != pgrepl.StateDown || o.Primary != cluster.Unknown {
		t.Errorf("killed: %+v", o)
	}
	if err := a.Select1(ctx); !errors.Is(err, pgrepl.ErrNotRunning) {
		t.Errorf("select 1: %v", err)
	}
	if err := a.Ping(ctx); err == nil {
		t.Error("the port is open")
	}
	// A standby without a consistent state admits nobody: it waits for WAL
	// up to the end of a backup that never comes.
	must(t, pgrepl.PrepareBoot(a.Instance.DataDir))
	pause := filepath.Join(filepath.Dir(a.Instance.ConfigFile), "conf.d", "zz.conf")
	must(t, os.WriteFile(pause, []byte("hot_standby = off\n"), 0o644))
	a.Launch(t)
	await(t, "the server starts and admits nobody", func() bool { return a.Observe(ctx).State == pgrepl.StateStarting })
	if _, err := a.Detach(ctx); !errors.Is(err, pgrepl.ErrStarting) {
		t.Errorf("detach: %v", err)
	}
}

// TestHold returns with the death of the postmaster, its children alive or not.
func TestHold(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a := newPrimary(t, pgtest.NewCA(t), "node-a", "127.10.2.11")
	ended := make(chan time.Time, 1)
	go func() {
		if err := a.Hold(ctx); err != nil && ctx.Err() == nil {
			ended <- time.Now()
		}
	}()
	await(t, "the session is held", func() bool {
		return a.query(t, "select count(*)::text from pg_stat_activity where usename = 'understudy' and query = ''") != "0"
	})
	select {
	case <-ended:
		t.Fatal("the held session ended by itself")
	default:
	}
	p, err := os.FindProcess(a.PID())
	must(t, err)
	began := time.Now()
	must(t, p.Kill())
	t.Logf("noticed %v after the postmaster's death", (<-ended).Sub(began))

	stopped, cancel := context.WithCancel(ctx)
	cancel()
	if err := a.Hold(stopped); err == nil {
		t.Error("holding without a server")
	}
}

// TestInUse finds what a join must not overwrite, before Prepare and after it.
func TestInUse(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a := bareNode(t, pgtest.NewCA(t), "node-a", "127.10.2.11")
	if _, err := a.InUse(ctx); !errors.Is(err, pgrepl.ErrNotRunning) {
		t.Errorf("stopped: %v", err)
	}
	a.Instance.Start(t)
	expect := func(want string) {
		t.Helper()
		if got, err := a.InUse(ctx); err != nil || got != want {
			t.Errorf("in use: %q %v, want %q", got, err, want)
		}
	}
	expect("")
	a.sql(t, "create role app")
	expect("role app")
	a.sql(t, "create table notes (n int)")
	expect("table public.notes in database postgres")
	a.sql(t, "create database app")
	expect("database app")
	a.Instance.Stop(t)
	activate(t, a)
	expect("database app")
	a.sql(t, "drop database app")
	a.sql(t, "drop table notes")
	a.sql(t, "drop role app")
	expect("")
}

// TestReleaseGivesTheOriginalsBack: nothing of ours is left, nothing of theirs was
// changed, on the node that was active and on one that was not.
func TestReleaseGivesTheOriginalsBack(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	ca := pgtest.NewCA(t)
	a := bareNode(t, ca, "node-a", "127.10.2.11")
	before := tree(t, filepath.Dir(a.Instance.ConfigFile))
	activate(t, a)
	if got := a.query(t, "show hba_file"); !strings.Contains(got, "/understudy/") {
		t.Errorf("hba_file %s", got)
	}
	for name, want := range map[string]string{"wal_level": "logical", "restart_after_crash": "off", "ssl": "on", "wal_log_hints": "on",
		"track_commit_timestamp": "on", "synchronous_standby_names": "", "full_page_writes": "on"} {
		if got := a.query(t, "show "+name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	must(t, a.EnsureSlots(ctx, "1", []string{"node-b"}))
	a.sql(t, "select pg_create_physical_replication_slot('theirs', true)")
	must(t, a.KeepDivergence(ctx))
	must(t, a.OpenDrill(ctx))
	a.sql(t, "create table notes as select 1 n")
	a.sql(t, "create schema understudy authorization understudy")
	b := newStandby(t, ca, "node-b", "127.10.2.12", a)
	if err := a.Release(ctx); !errors.Is(err, pgrepl.ErrRunning) {
		t.Errorf("release a server that runs: %v", err)
	}
	for _, n := range []*node{b, a} {
		n.Instance.Stop(t)
		must(t, n.Release(ctx))
		must(t, n.Release(ctx)) // again
		if after := tree(t, filepath.Dir(n.Instance.ConfigFile)); n == a && after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		left, err := filepath.Glob(n.Instance.DataDir + ".*")
		must(t, err)
		if left = slices.DeleteFunc(left, func(f string) bool { return strings.Contains(f, "main.old-") }); len(left) > 0 {
			t.Errorf("%s: %v is left beside the data directory", n.name, left)
		}
		n.Instance.Start(t)
		for query, want := range map[string]string{
			"select pg_is_in_recovery()::text":                                              "false",
			"select n::text from notes":                                                     "1",
			"select count(*)::text from pg_roles where rolname like 'understudy%'":          "0",
			"select nspowner::regrole::text from pg_namespace where nspname = 'understudy'": "postgres",
			"select coalesce(string_agg(slot_name, ' '), '') from pg_replication_slots":     map[*node]string{a: "theirs"}[n],
			"select count(*)::text from pg_namespace where nspname = 'understudy_drill'":    "0",
			"select (current_setting('hba_file') like '%/understudy/%')::text":              "false",
		} {
			if got := n.query(t, query); got != want {
				t.Errorf("%s: %s: %q, want %q", n.name, query, got, want)
			}
		}
	}
}

// tree lists a folder with its contents.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			b.WriteString(path + "\n")
			return err
		}
		text, err := os.ReadFile(path)
		b.WriteString(path + ": " + string(text) + "\n")
		return err
	}))
	return b.String()
}

// TestOverriddenSettingIsRefused: ALTER SYSTEM wins over every file of ours.
func TestOverriddenSettingIsRefused(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	a := newPrimary(t, pgtest.NewCA(t), "node-a", "127.10.2.11")
	a.sql(t, "alter system set synchronous_standby_names = '*'")
	err := a.SetQuorum(ctx, cluster.Quorum{})
	if !errors.Is(err, pgrepl.ErrOverridden) || !strings.Contains(err.Error(), "ALTER SYSTEM RESET synchronous_standby_names") {
		t.Errorf("set quorum: %v", err)
	}
	if problems := a.Preflight(ctx); len(problems) != 1 {
		t.Errorf("preflight: %v", problems)
	}
	a.sql(t, "alter system reset synchronous_standby_names")
	must(t, a.SetQuorum(ctx, cluster.Quorum{}))
	if problems := a.Preflight(ctx); len(problems) != 0 {
		t.Errorf("preflight: %v", problems)
	}
}

// TestPreflight names what is wrong and how to right it.
func TestPreflight(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	i := pgtest.New(t, "127.10.2.11")
	for name, c := range map[string]struct {
		change func(*pgrepl.Config)
		want   string
	}{
		"nothing":       {func(*pgrepl.Config) {}, ""},
		"no binaries":   {func(c *pgrepl.Config) { c.BinDir = "/nonexistent" }, "/nonexistent/postgres is missing"},
		"no data":       {func(c *pgrepl.Config) { c.DataDir = i.Root + "/none" }, "cannot be read"},
		"not a cluster": {func(c *pgrepl.Config) { c.DataDir = i.SSLDir }, "not initialised"},
		"inside":        {func(c *pgrepl.Config) { c.ConfigFile = i.DataDir + "/postgresql.conf" }, "inside of the data directory"},
		"no conf.d":     {func(c *pgrepl.Config) { c.ConfigFile = i.DataDir + "/../postgresql.conf" }, "is missing"},
		"long socket":   {func(c *pgrepl.Config) { c.SocketDir = "/" + strings.Repeat("x", 100) }, "too long"},
	} {
		conf := configOf(i, "node-a")
		c.change(&conf)
		s, err := pgrepl.New(conf)
		must(t, err)
		var words []string
		for _, p := range s.Preflight(ctx) {
			if p.Remedy == "" {
				t.Errorf("%s: no remedy for %q", name, p.What)
			}
			words = append(words, p.What)
		}
		if got := strings.Join(words, "; "); !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestPreflightOfOwners: with a data directory that root has copied, or that is open to
// others, PostgreSQL does not start.
func TestPreflightOfOwners(t *testing.T) {
	t.Parallel()
	i := pgtest.New(t, "127.10.2.11")
	s, err := pgrepl.New(configOf(i, "node-a"))
	must(t, err)
	problems := func() string {
		var all []string
		for _, p := range s.Preflight(ctxOf(t)) {
			all = append(all, p.What+"; "+p.Remedy)
		}
		return strings.Join(all, "\n")
	}
	for mode, want := range map[os.FileMode]string{
		0o755: "has the mode 0755, with which PostgreSQL does not start; 'chmod 0700 " + i.DataDir + "'",
		0o500: "has the mode 0500",
		0o750: "", 0o700: "",
	} {
		must(t, os.Chmod(i.DataDir, mode))
		if got := problems(); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("mode %#o: %q, want %q", mode, got, want)
		}
	}
	must(t, os.Chmod(i.DataDir, 0o700))
	if os.Geteuid() != 0 {
		return // only root can give files away
	}
	owned, err := os.Stat(i.DataDir)
	must(t, err)
	was := owned.Sys().(*syscall.Stat_t)
	for _, file := range []string{i.DataDir, i.DataDir + "/global"} {
		must(t, os.Chown(file, 0, 0))
		want := file + " belongs to root and not to " + i.SystemUser + ", as which PostgreSQL runs; 'chown -R " + i.SystemUser + ": " + i.DataDir + "'"
		if got := problems(); !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		must(t, os.Chown(file, int(was.Uid), int(was.Gid)))
	}
	if got := problems(); got != "" {
		t.Errorf("all is right, but %q", got)
	}
}

// TestPrepareNeedsConfD: settings in a folder that is not included would count
// for nothing.
func TestPrepareNeedsConfD(t *testing.T) {
	t.Parallel()
	a := bareNode(t, pgtest.NewCA(t), "node-a", "127.10.2.11")
	text, err := os.ReadFile(a.Instance.ConfigFile)
	must(t, err)
	must(t, os.WriteFile(a.Instance.ConfigFile, []byte(strings.ReplaceAll(string(text), "include_dir = 'conf.d'", "")), 0o644))
	err = a.Prepare(ctxOf(t))
	if !errors.Is(err, pgrepl.ErrOverridden) || !strings.Contains(err.Error(), "include_dir = 'conf.d'") {
		t.Errorf("prepare: %v", err)
	}
}

// TestPrepareIsRepeated: it keeps what the roles have set, and brings new
// parameters and certificates.
func TestPrepareIsRepeated(t *testing.T) {
	t.Parallel()
	ctx := ctxOf(t)
	ca := pgtest.NewCA(t)
	a := newPrimary(t, ca, "node-a", "127.10.2.11")
	ca.Issue(t, a.Instance.SSLDir, "node-a", "127.10.2.11")
	conf := configOf(a.Instance, "node-a")
	conf.Parameters = map[string]string{"work_mem": "5MB"}
	again, err := pgrepl.New(conf)
	must(t, err)
	defer again.Close()
	must(t, again.Prepare(ctx))
	if o := a.Observe(ctx); o.Gate != cluster.Yes || o.Quorum == nil || o.Quorum.K != 0 {
		t.Errorf("after the second Prepare: %+v", o)
	}
	await(t, "the new parameter counts", func() bool { return a.query(t, "show work_mem") == "5MB" })
}
