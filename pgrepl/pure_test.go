package pgrepl

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/pgrepl/internal/command"
)

func testServer() *Server {
	return &Server{Config: Config{ConfigFile: "/etc/pg/postgresql.conf", SocketDir: "/run/pg", Address: "10.0.0.1", Port: 5432,
		NodeName: "node-a", SystemUser: "postgres", Parameters: map[string]string{}}}
}

func TestParameters(t *testing.T) {
	for _, c := range []struct {
		name, value, want string // want: part of the error, empty if it is taken
	}{
		{"max_connections", "300", ""},
		{"synchronous_commit", "remote_apply", ""},
		{"synchronous_commit", "local", "loses acknowledged commits"},
		{"Fsync", "off", "set by understudy"},
		{"primary_conninfo", "host=x", "set by understudy"},
		{"restart_after_crash", "on", "set by understudy"},
		{"work mem", "4MB", "not a name"},
		{"", "4MB", "not a name"},
		{"work_mem", "4MB'\nfsync=off", "line break"},
	} {
		err := checkParameters(map[string]string{c.name: c.value})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s = %q: %v", c.name, c.value, err)
		}
	}
}

func TestStaticConfHasEverySettingOnce(t *testing.T) {
	s := testServer()
	s.Parameters = map[string]string{"Max_Wal_Senders": "7", "application_name": "it's"}
	text := s.staticConf("/run/app, /run/own", []setting{{"max_connections", "250"}, {"max_wal_senders", "30"}})
	seen := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " = "); ok {
			if _, twice := seen[name]; twice {
				t.Errorf("%s is there twice", name)
			}
			seen[name] = value
		}
	}
	for name, want := range map[string]string{"max_wal_senders": "'7'", "max_connections": "'250'", "application_name": "'it''s'",
		"restart_after_crash": "'off'", "listen_addresses": "'127.0.0.1,10.0.0.1'"} {
		if seen[name] != want {
			t.Errorf("%s = %s, want %s", name, seen[name], want)
		}
	}
}

func TestNodesOnOneMachineListenOnTheirOwnLoopbackOnly(t *testing.T) {
	if got := listenAddresses("127.0.0.12"); got != "127.0.0.12" {
		t.Errorf("listens on %s", got)
	}
}

func TestDynamicConf(t *testing.T) {
	s := testServer()
	full := dynamic{conninfo: s.conninfo(Upstream{Name: "b", Address: "10.0.0.2", Port: 5433}, setting{"dbname", `it's a \ name`}),
		slot: "understudy_1_node_a", standbys: `ANY 1 ("b", "c")`, generation: 7}
	if got := parseDynamic(full.text()); got != full {
		t.Errorf("read back %+v, wrote %+v", got, full)
	}
	if address, port := upstreamOf(full.conninfo); address != "10.0.0.2" || port != 5433 {
		t.Errorf("upstream %s %d", address, port)
	}
	empty := parseDynamic("")
	if empty.conninfo != "" || empty.standbys != `ANY 1 ("understudy nobody")` {
		t.Errorf("an empty file replicates: %+v", empty)
	}
}

func TestStandbyNames(t *testing.T) {
	for _, q := range []cluster.Quorum{{}, {Members: []string{"a"}, K: 1}, {Members: []string{"a-1", "b"}, K: 2}, lockedQuorum} {
		text := standbyNames(q)
		if got, ok := parseStandbyNames(text); !ok || !got.Equal(q) {
			t.Errorf("%q is read as %v", text, got)
		}
	}
	for _, text := range []string{"*", "a", `FIRST 1 ("a")`, `ANY x ("a")`, `ANY 1 "a"`} {
		if q, ok := parseStandbyNames(text); ok {
			t.Errorf("%q is read as %v", text, q)
		}
	}
}

func TestOverridden(t *testing.T) {
	for text, want := range map[string]string{
		"# primary_conninfo = 'x'\nwork_mem = '8MB'\n": "",
		"synchronous_standby_names = '*'\n":            "synchronous_standby_names",
		"work_mem='8MB'\nPrimary_Conninfo='x'\n":       "primary_conninfo",
		"fsync = 'off'\n":                              "fsync",
	} {
		if got := overriddenIn(text); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}

func TestClosedGateAdmitsOnlyOurs(t *testing.T) {
	s := testServer()
	original := "host all all 0.0.0.0/0 trust\n"
	closed, open := s.hba(false, original), s.hba(true, original)
	if strings.Contains(closed, "trust") || !strings.Contains(closed, "host replication,all all all reject") {
		t.Errorf("closed:\n%s", closed)
	}
	if !strings.HasSuffix(open, original) || strings.Index(open, ReplicaRole+" all reject") > strings.Index(open, original) {
		t.Errorf("open:\n%s", open)
	}
}

func TestMajor(t *testing.T) {
	for out, want := range map[string]int{"postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n": 15,
		"postgres (PostgreSQL) 17beta2\n": 17, "postgres (PostgreSQL) 16\n": 16} {
		if got, err := parseMajor(out); err != nil || got != want {
			t.Errorf("%q: %d %v", out, got, err)
		}
	}
	if _, err := parseMajor("no such thing"); err == nil {
		t.Error("nonsense has a version")
	}
}

func TestControlDataRefusesNonsense(t *testing.T) {
	for _, text := range []string{"", "Database system identifier: 1\n", "Latest checkpoint location: zero\n"} {
		if _, err := parseControlData(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestClassify(t *testing.T) {
	for message, want := range map[string]error{
		"the database system is starting up":                   ErrStarting,
		"the database system is not yet accepting connections": ErrStarting,
		"the database system is in recovery mode":              ErrStarting,
		"the database system is shutting down":                 ErrStopping,
	} {
		if err := classify(&pgconn.PgError{Code: "57P03", Message: message}); !errors.Is(err, want) {
			t.Errorf("%s: %v", message, err)
		}
	}
	if err := classify(&pgconn.PgError{Code: "53300"}); stateOf(err) != StateUnknown {
		t.Errorf("too many sessions: %v", stateOf(err))
	}
}

func TestSpaceForAClone(t *testing.T) {
	s := testServer()
	s.DataDir = t.TempDir() + "/main"
	if err := s.enoughSpace(1); err != nil {
		t.Errorf("one byte: %v", err)
	}
	err := s.enoughSpace(1 << 60)
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "MB are needed") {
		t.Errorf("an exabyte: %v", err)
	}
}

func TestCopyError(t *testing.T) {
	s := testServer()
	s.DataDir = "/data/main"
	full := &command.Error{Label: "copy", Output: `pg_basebackup: error: could not write to file "x": No space left on device`, Err: errors.New("exit status 1")}
	if err := s.copyError(full, 1<<20); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "257 MB are needed at /data") {
		t.Errorf("full disk: %v", err)
	}
	other := &command.Error{Label: "copy", Output: "connection refused", Err: errors.New("exit status 1")}
	if err := s.copyError(other, 1<<20); errors.Is(err, ErrNoSpace) || !errors.Is(err, other) {
		t.Errorf("another failure: %v", err)
	}
}

func TestEveryRequiredSettingIsOurs(t *testing.T) {
	for _, r := range required {
		if !slices.Contains(ownNames(), r.name) {
			t.Errorf("%s could be changed", r.name)
		}
	}
}
