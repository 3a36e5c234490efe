package docs

import (
	"strings"
	"testing"
)

// A number in the prose stands in the source too. Both sides are looked for as
// text: who changes one is told to look at the other.
func TestNumbers(t *testing.T) {
	for _, n := range []struct{ doc, says, file, source string }{
		{"architecture.md", "older than 10 s is taken for *unknown*", "../config/config.go", "StaleAfter = 10 * time.Second"},
		{"operations.md", "not believed after 10 s", "../config/config.go", "StaleAfter = 10 * time.Second"},
		{"architecture.md", "a TTL of 1 s and is renewed three times", "../handlerrunner/lease.go", "leaseTTL    = time.Second\n\tleaseFactor = 1.8\n\trenewals    = 3"},
		{"architecture.md", "for 1.8 TTL", "../handlerrunner/lease.go", "leaseFactor = 1.8"},
		{"architecture.md", "after a standby has been away for 2 s", "../handlerrunner/maintain.go", "dropAfter = 2 * time.Second"},
		{"architecture.md", "without its active's WAL for 30 s", "../handlerrunner/observe.go", "strandedAfter = 30 * time.Second"},
		{"architecture.md", "has not taken the lock within 2 s", "../handlerrunner/observe.go", "confirmWithin = 2 * time.Second"},
		{"architecture.md", "API, twice a second", "../watcher/watcher.go", "probeEvery = 500 * time.Millisecond"},
		{"architecture.md", "calm for 1.5 s", "../watcher/watcher.go", "calmFor = 1500 * time.Millisecond"},
		{"architecture.md", "after a fifth of `minority_after`", "../cluster/verdict.go", "after/5"},
		{"architecture.md", "the newest 500 are kept", "../registry/events.go", "MaxEvents = 500"},
		{"operations.md", "The newest 500 are kept", "../registry/events.go", "MaxEvents = 500"},
		{"operations.md", "it begins anew after 5 s", "../handlerrunner/act.go", "h.rest(5 * time.Second)"},
		{"operations.md", "The two newest earlier directories are kept", "../pgrepl/marks.go", "keptOld = 2"},
		{"operations.md", "The CA is valid for ten years, a node's certificate for two", "../certs/ca.go", "lifeOfCA   = 10 * 365 * 24 * time.Hour\n\tlifeOfNode = 2 * 365 * 24 * time.Hour"},
		{"operations.md", "from an hour before they were made", "../certs/ca.go", "backdate = time.Hour"},
		{"operations.md", "refuses a host whose clock is 5 minutes off", "../membership/join.go", "clockApart = 5 * time.Minute"},
		{"operations.md", "warns from 5 s on", "../cluster/side.go", "ClockSkew = 5 * time.Second"},
		{"operations.md", "has 1 to 40 lower-case letters", "../cluster/node.go", "has 1 to 40 lower-case letters"},
		{"operations.md", "`make bench` does every fault five times", "../dev/bench/command.go", "Usage: \"how often each thing is measured\", Value: 5"},
		{"operations.md", "node is thawed after 60 s", "../dev/bench/command.go", "Usage: \"how long a frozen node stands still\", Value: time.Minute"},
		{"operations.md", "Consul is away for 30 s", "../dev/bench/faults.go", "withoutConsulFor(Options) time.Duration { return 30 * time.Second }"},
		{"operations.md", "with a `minority_after` of 5 s", "../dev/bench/minority.go", "minorityAfter = 5 * time.Second"},
		{"operations.md", "when it has 64 MB of WAL", "../dev/bench/rejoin.go", "repeat('x', 8000)) from generate_series(1, 8000)"},
		{"operations.md", "when the others have written for 5 s", "../dev/bench/rejoin.go", "awayFor = 5 * time.Second"},
	} {
		if !strings.Contains(oneLine(read(t, n.doc)), n.says) {
			t.Errorf("%s does not say %q any more; take that out of this test, or put it back", n.doc, n.says)
		}
		if !strings.Contains(read(t, n.file), n.source) {
			t.Errorf("%s does not have %q any more; correct %q in %s", n.file, n.source, n.says, n.doc)
		}
	}
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
