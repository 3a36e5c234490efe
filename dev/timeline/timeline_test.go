package timeline

import (
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/dev/probe"
	"github.com/understudy-ha/understudy/history"
)

var update = flag.Bool("update", false, "write the golden text anew")

// recorded are the events of a cluster of three nodes: its start, the active
// PostgreSQL killed, the active node killed, and a hand-over.
func recorded(t *testing.T) []cluster.Event {
	t.Helper()
	text, err := os.ReadFile("testdata/events.json")
	if err != nil {
		t.Fatal(err)
	}
	var events []cluster.Event
	if err := json.Unmarshal(text, &events); err != nil {
		t.Fatal(err)
	}
	return events
}

func at(clock string) time.Time {
	when, err := time.Parse(time.RFC3339Nano, "2026-11-21T"+clock+"Z")
	if err != nil {
		panic(err)
	}
	return when
}

// The faults of the recording, and the outages that its writer saw.
var (
	killed    = Fault{Title: "kill -9 of PostgreSQL on node1", At: at("06:21:34.938"), Active: "node1", Epoch: 1}
	powerCut  = Fault{Title: "power cut on node2", At: at("06:21:37.3"), Active: "node2", Epoch: 2, Restarted: at("06:21:43.103")}
	handed    = Fault{Title: "set-active node2", At: at("06:21:45.543"), Active: "node1", Epoch: 3}
	end       = at("06:21:50")
	killedGap = probe.Gap{From: at("06:21:34.945"), To: at("06:21:35.483"), Before: "node1", After: "node2"}
	powerGap  = probe.Gap{From: at("06:21:37.304"), To: at("06:21:43.100"), Before: "node2", After: "node1"}
	handedGap = probe.Gap{From: at("06:21:45.613"), To: at("06:21:46.061"), Before: "node1", After: "node2"}
)

func TestRenderRecording(t *testing.T) {
	events := recorded(t)
	var b strings.Builder
	for i, c := range []struct {
		fault Fault
		until time.Time
		gap   probe.Gap
	}{{killed, powerCut.At, killedGap}, {powerCut, handed.At, powerGap}, {handed, end, handedGap}} {
		change, err := Read(c.fault, events, c.until)
		if err != nil {
			t.Fatal(err)
		}
		Render(&b, Style{}, i+1, change, c.gap)
	}
	const golden = "testdata/story.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the text is not that of %s; look at it, and run with -update if it is better:\n%s", golden, b.String())
	}
	for line := range strings.Lines(b.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > Width {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

func TestReadRecording(t *testing.T) {
	c, err := Read(powerCut, recorded(t), handed.At)
	if err != nil {
		t.Fatal(err)
	}
	if c.Epoch != 3 || c.Winner != "node1" || c.By != "node3" || c.Wasted != 0 || c.Later != 0 || c.Asked {
		t.Errorf("got %+v", c)
	}
	if len(c.Answers) != 2 || c.Answers[0].Node != "node1" || c.Start != (cluster.Position{Timeline: 4, LSN: 0x504ACA8}) || c.Quorum.K != 1 {
		t.Errorf("got answers %+v, start %v, quorum %v", c.Answers, c.Start, c.Quorum)
	}
	if d, ok := c.Since(history.Writable); !ok || d.Round(time.Millisecond) != 5800*time.Millisecond {
		t.Errorf("writable at %v, %v", d, ok)
	}
	if c.Return("node2").Standby.IsZero() {
		t.Errorf("rejoined: %+v", c.Returns)
	}
}

// changed reads the first change of the recording, after f has had its way with
// the events.
func changed(t *testing.T, f func([]cluster.Event) []cluster.Event) Change {
	t.Helper()
	c, err := Read(killed, f(recorded(t)), powerCut.At)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func event(clock, node, kind string, epoch cluster.Epoch, data string) cluster.Event {
	return cluster.Event{At: at(clock), Node: node, Kind: kind, Epoch: epoch, Data: json.RawMessage(data)}
}

func story(c Change, gap probe.Gap) string {
	var b strings.Builder
	Render(&b, Style{}, 1, c, gap)
	return b.String()
}

func expect(t *testing.T, text, want string) {
	t.Helper()
	if !strings.Contains(text, want) {
		t.Errorf("%q is missing in\n%s", want, text)
	}
}

func TestNobodyBecameWritable(t *testing.T) {
	c := changed(t, func(e []cluster.Event) []cluster.Event {
		return slices.DeleteFunc(e, func(e cluster.Event) bool { return e.Kind == "writable" })
	})
	if c.Winner != "" || c.Wasted != 1 {
		t.Errorf("got %+v", c)
	}
	expect(t, story(c, probe.Gap{}), "no node has become writable")
}

func TestAWinnerThatWasPassedOver(t *testing.T) {
	c := changed(t, func(e []cluster.Event) []cluster.Event {
		for i := range e {
			if e[i].Epoch == 2 {
				e[i].Epoch = 3
			}
		}
		return append(e, event("06:21:35.010", "node3", "elected", 2, `{"winner":"node3"}`))
	})
	if c.Epoch != 3 || c.Winner != "node2" || c.Wasted != 1 {
		t.Errorf("got %+v", c)
	}
	expect(t, story(c, killedGap), "elections whose winner did not become writable: 1")
}

func TestAnElectionThatNobodyAskedFor(t *testing.T) {
	c := changed(t, func(e []cluster.Event) []cluster.Event {
		return append(e, event("06:21:36.5", "node3", "elected", 3, `{"winner":"node3"}`))
	})
	if c.Later != 1 {
		t.Errorf("got %+v", c)
	}
	expect(t, story(c, killedGap), "more elections, which nothing here asked for: 1")
}

func TestRejoinByRewind(t *testing.T) {
	c := changed(t, func(e []cluster.Event) []cluster.Event {
		return append(e, event("06:21:35.938", "node1", "rewind", 2, ""),
			event("06:21:36.438", "node1", "state", 2, `{"from":"rejoining","to":"standby"}`))
	})
	expect(t, story(c, killedGap), "node1 rewound at 1000 ms, a standby again at 1500 ms")
}

func TestNotBackYet(t *testing.T) {
	c := changed(t, func(e []cluster.Event) []cluster.Event {
		return append(e, event("06:21:36", "node1", "state", 2, `{"from":"standby","to":"failed"}`))
	})
	expect(t, story(c, killedGap), "node1 has not come back")
}

func TestOutageThatGoesOn(t *testing.T) {
	c := changed(t, func(e []cluster.Event) []cluster.Event { return e })
	gap := killedGap
	gap.After, gap.To = "", gap.From.Add(12*time.Second)
	text := story(c, gap)
	expect(t, text, "still going on after 12.0 s")
	if strings.Contains(text, "first write") {
		t.Errorf("there was no first write:\n%s", text)
	}
}

func TestDamagedEvent(t *testing.T) {
	events := append(recorded(t), event("06:21:36", "node1", "state", 2, `{"to":`))
	if _, err := Read(killed, events, powerCut.At); err == nil {
		t.Error("an event that cannot be read gives no error")
	}
}

func TestStyle(t *testing.T) {
	if got := (Style{colour: true}).Good("well"); got != "\033[32mwell\033[0m" {
		t.Errorf("%q", got)
	}
	if StyleFor(&strings.Builder{}) != (Style{}) {
		t.Error("what is no terminal gets colours")
	}
}

func TestMillis(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 ms", 1499 * time.Microsecond: "1 ms", 9999 * time.Millisecond: "9999 ms", 12345 * time.Millisecond: "12.3 s",
	} {
		if got := Millis(d); got != want {
			t.Errorf("%v: %s, not %s", d, got, want)
		}
	}
}

func TestWrap(t *testing.T) {
	for name, c := range map[string]struct {
		text        string
		width, hang int
		want        []string
	}{
		"short":            {"one two", 10, 0, []string{"one two"}},
		"at a space":       {"one two three", 8, 0, []string{"one two", "three"}},
		"hanging":          {"a: one two three", 8, 3, []string{"a: one", "   two", "   three"}},
		"no space":         {"abcdefghij", 4, 0, []string{"abcd", "efgh", "ij"}},
		"no space to hang": {"a: bcdefgh", 6, 3, []string{"a: bcd", "   efg", "   h"}},
		"exactly":          {"12345 789", 9, 0, []string{"12345 789"}},
	} {
		if got := wrap(c.text, c.width, c.hang); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
}
