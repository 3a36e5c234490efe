package cli

import (
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/history"
)

var update = flag.Bool("update", false, "write the golden text anew")

// recorded are the changes of a recorded cluster.
func recorded(t *testing.T) []history.Change {
	t.Helper()
	text, err := os.ReadFile("../history/testdata/events.json")
	if err != nil {
		t.Fatal(err)
	}
	var events []cluster.Event
	if err := json.Unmarshal(text, &events); err != nil {
		t.Fatal(err)
	}
	changes, err := history.Changes(events)
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

func TestPick(t *testing.T) {
	changes := recorded(t)
	changes[3].Attempts = []history.Attempt{{Epoch: 40, Winner: "node3"}}
	for epoch, want := range map[cluster.Epoch]cluster.Epoch{0: 6, 1: 1, 4: 4, 40: 4} {
		if c, err := pick(changes, epoch); err != nil || c.Epoch != want {
			t.Errorf("epoch %d: %d, %v", epoch, c.Epoch, err)
		}
	}
	if _, err := pick(changes, 7); err == nil || !strings.Contains(err.Error(), "from epoch 1 to 6") {
		t.Errorf("%v", err)
	}
	if _, err := pick(nil, 0); err == nil {
		t.Error("there is nothing to explain")
	}
}

func TestPrintChange(t *testing.T) {
	local := time.Local
	time.Local = time.UTC
	defer func() { time.Local = local }()
	var b strings.Builder
	for _, c := range recorded(t) {
		printChange(&b, c)
		b.WriteString("\n")
	}
	printChange(&b, history.Change{Epoch: 9, From: "node1", Why: "node1 lost the lock", Attempts: []history.Attempt{{Epoch: 8, Winner: "node2", Reason: "furthest"}}})
	const golden = "testdata/explain.txt"
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
}
