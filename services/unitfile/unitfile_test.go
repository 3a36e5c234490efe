package unitfile

import (
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/packaging"
)

func TestSplit(t *testing.T) {
	for value, want := range map[string][]string{
		"":                             nil,
		"  a  b\tc ":                   {"a", "b", "c"},
		`a "b c" 'd e'`:                {"a", "b c", "d e"},
		`a"b c"d`:                      {"ab cd"},
		`"" x`:                         {"", "x"},
		`a\sb \x41\102 \\ \"`:          {"a b", "AB", `\`, `"`},
		`100%% $$HOME %n`:              {"100%", "$HOME", "a.service"},
		`find . -exec touch x \; last`: {"find", ".", "-exec", "touch", "x", ";", "last"},
		`find . \;`:                    {"find", ".", ";"},
		`a;b`:                          {"a;b"},
	} {
		got, err := Split(value, "a.service")
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: got %q, %v, want %q", value, got, err, want)
		}
	}
	for _, value := range []string{`"open`, `a ; b`, `$HOME`, `%i`, `a\`, `\q`, `\x4`, `\000`, `%`} {
		if got, err := Split(value, "a.service"); err == nil {
			t.Errorf("%q: got %q, want an error", value, got)
		}
	}
}

func TestJoinIsReadBack(t *testing.T) {
	words := []string{"/bin/a", "", "b c", `d"e`, "f'g", `h\i`, "100%", "$HOME", ";", "j;k", "line\nbreak", "tab\t"}
	got, err := Split(Join(words), "a.service")
	if err != nil || !slices.Equal(got, words) {
		t.Errorf("got %q, %v, want %q", got, err, words)
	}
}

func TestSpan(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"5": 5 * time.Second, "0": 0, "infinity": 0, "500ms": 500 * time.Millisecond, "1min 30s": 90 * time.Second, "2h": 2 * time.Hour, "1.5": 1500 * time.Millisecond,
	} {
		if got, err := span(value); err != nil || got != want {
			t.Errorf("%q: got %s, %v, want %s", value, got, err, want)
		}
	}
	for _, value := range []string{"", "s", "5 apples", "-1"} {
		if got, err := span(value); err == nil {
			t.Errorf("%q: got %s, want an error", value, got)
		}
	}
}

func TestParse(t *testing.T) {
	got, err := Parse("a.service", `
# a comment
[Unit]
Description=A
After=x.service y.service
ConditionPathExists=!/nowhere
[Service]
Type=exec
User=u
Group=g
ExecStartPre=-/bin/one
ExecStartPre=/bin/two
ExecStart=/bin/main \
  -a
Environment=A=1 "B=2 3"
KillMode=mixed
KillSignal=SIGINT
FinalKillSignal=QUIT
TimeoutStopSec=20
TimeoutStartSec=infinity
Restart=on-failure
RestartSec=250ms
LimitNOFILE=1000
ProtectSystem=strict
[Install]
WantedBy=multi-user.target
`, "[Service]\nExecStartPre=\nExecStartPre=/bin/three\nExecStart=\nExecStart=/bin/other\n")
	want := Unit{
		Name: "a.service", Type: "exec", User: "u", Group: "g",
		StartPre: []Command{{Argv: []string{"/bin/three"}}}, Start: Command{Argv: []string{"/bin/other"}},
		Environment: []string{"A=1", "B=2 3"}, Restart: "on-failure", RestartSec: 250 * time.Millisecond,
		KillMode: "mixed", KillSignal: syscall.SIGINT, FinalKillSignal: syscall.SIGQUIT,
		TimeoutStart: 0, TimeoutStop: 20 * time.Second, LimitNOFILE: 1000,
		Conditions: []Condition{{"/nowhere", true}}, After: []string{"x.service", "y.service"}, WantedBy: []string{"multi-user.target"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	if !got.Conditions[0].Holds() {
		t.Error("a condition that a file is missing does not hold where it is missing")
	}
}

// A directive that the supervisor does not follow, although it would change what
// happens, must not be passed over.
func TestParseRefuses(t *testing.T) {
	for _, line := range []string{
		"DynamicUser=yes", "EnvironmentFile=/x", "Type=forking", "Restart=on-abort", "KillMode=process", "KillSignal=SIGNONE",
		"RestartSec=soon", "ExecStop=/bin/x", "ExecStart=relative", "ExecStart=/bin/second", "Environment=\"open", "LimitNOFILE=infinity",
	} {
		_, err := Parse("a.service", "[Service]\nExecStart=/bin/x\n"+line+"\n")
		if err == nil || !strings.Contains(err.Error(), "unit a.service: [Service] "+line[:strings.Index(line, "=")]) {
			t.Errorf("%s: %v", line, err)
		}
	}
	if _, err := Parse("a.service", "[Unit]\nRequires=b.service\n[Service]\nExecStart=/bin/x\n"); err == nil {
		t.Error("Requires= was passed over")
	}
	if _, err := Parse("a.service", "[Unit]\nDescription=x\n"); err == nil {
		t.Error("a unit without ExecStart was accepted")
	}
}

// The unit files of a real host are what dev mode runs.
func TestPackagedUnits(t *testing.T) {
	for _, name := range append(packaging.Daemons(), packaging.PostgresDropIn) {
		text, err := packaging.Unit(name)
		if err != nil {
			t.Fatal(err)
		}
		u, err := Parse(name, text)
		if err != nil {
			t.Error(err)
		}
		if u.Restart == "no" || u.RestartSec > time.Second || u.User == "" || u.TimeoutStop == 0 {
			t.Errorf("%s: unbounded, not restarted, or run as root: %+v", name, u)
		}
		if name != packaging.PostgresDropIn && !slices.Equal(u.WantedBy, []string{"multi-user.target"}) {
			t.Errorf("%s: cannot be enabled", name)
		}
	}
}
