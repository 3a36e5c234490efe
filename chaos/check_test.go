package chaos

import (
	"slices"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// at is an operation from one millisecond to another.
func at(from, to int, o Op) Op {
	o.Call, o.Return = time.Duration(from)*time.Millisecond, time.Duration(to)*time.Millisecond
	if o.Key == "" {
		o.Key = "r"
	}
	if o.Outcome == "" {
		o.Outcome = OK
	}
	return o
}

func read(v int64) Op  { return Op{Client: "reader", Action: Read, Value: v} }
func write(v int64) Op { return Op{Client: "writer", Action: Write, Arg: v} }
func swap(old, to int64) Op {
	return Op{Client: "swapper", Action: CAS, Old: old, Arg: to, Swapped: true}
}
func noSwap(old, to int64) Op { return Op{Client: "swapper", Action: CAS, Old: old, Arg: to} }
func info(o Op) Op            { o.Outcome, o.Swapped = Info, false; return o }
func failed(o Op) Op          { o.Outcome = Fail; return o }
func on(node, timeline string, o Op) Op {
	o.Node, o.Timeline = node, timeline
	return o
}

func TestLinearizable(t *testing.T) {
	for name, c := range map[string]struct {
		ops  []Op
		want string // kind of violation; empty: none
	}{
		"one after the other":                      {[]Op{at(0, 1, write(1)), at(2, 3, read(1)), at(4, 5, swap(1, 2)), at(6, 7, read(2))}, ""},
		"a register that nobody has written":       {[]Op{at(0, 1, read(0))}, ""},
		"an acknowledged write is gone":            {[]Op{at(0, 1, write(1)), at(2, 3, read(0))}, "not linearizable"},
		"a stale read":                             {[]Op{at(0, 1, write(1)), at(2, 3, write(2)), at(4, 5, read(1))}, "not linearizable"},
		"a read while the write goes on":           {[]Op{at(0, 1, write(1)), at(2, 9, write(2)), at(4, 5, read(1)), at(6, 7, read(2))}, ""},
		"new, then old again":                      {[]Op{at(0, 1, write(1)), at(2, 9, write(2)), at(4, 5, read(2)), at(6, 7, read(1))}, "not linearizable"},
		"an indeterminate write is seen later":     {[]Op{at(0, 1, info(write(1))), at(4, 5, read(0)), at(8, 9, read(1))}, ""},
		"an indeterminate write is never seen":     {[]Op{at(0, 1, info(write(1))), at(4, 5, read(0)), at(8, 9, read(0))}, ""},
		"an indeterminate write is seen and gone":  {[]Op{at(0, 1, info(write(1))), at(4, 5, read(1)), at(8, 9, read(0))}, "not linearizable"},
		"a refused write is seen":                  {[]Op{at(0, 1, failed(write(1))), at(4, 5, read(1))}, "not linearizable"},
		"a swap that should have failed":           {[]Op{at(0, 1, write(1)), at(2, 3, swap(7, 2))}, "not linearizable"},
		"a swap that should have succeeded":        {[]Op{at(0, 1, write(1)), at(2, 3, noSwap(1, 2))}, "not linearizable"},
		"two swaps from one value":                 {[]Op{at(0, 1, write(1)), at(2, 5, swap(1, 2)), at(3, 6, swap(1, 3))}, "not linearizable"},
		"an indeterminate swap makes another fail": {[]Op{at(0, 1, write(1)), at(2, 3, info(swap(1, 2))), at(4, 5, noSwap(1, 3)), at(6, 7, read(2))}, ""},
	} {
		got := Linearizable(c.ops)
		if (len(got) == 0) != (c.want == "") || len(got) > 0 && (got[0].Kind != c.want || len(got[0].History) == 0) {
			t.Errorf("%s: %+v, not %q", name, got, c.want)
		}
	}
}

func TestLinearizableChecksEachRegister(t *testing.T) {
	other := func(o Op) Op { o.Key = "s"; return o }
	ops := []Op{at(0, 1, write(1)), at(2, 3, other(write(2))), at(4, 5, read(1)), at(4, 5, other(read(1)))}
	got := Linearizable(ops)
	if len(got) != 1 || got[0].Message != "no order explains the 2 operations on register s" {
		t.Errorf("the second register alone is broken: %+v", got)
	}
}

// The part of a long history that is shown holds the operation that does not fit.
func TestStuckShowsTheCulprit(t *testing.T) {
	var ops []Op
	for i := range 200 {
		ops = append(ops, at(10*i, 10*i+1, write(int64(i+1))), at(10*i+2, 10*i+3, read(int64(i+1))))
	}
	culprit := at(1505, 1506, read(3))
	ops = append(ops, culprit)
	got := Linearizable(ops)
	if len(got) != 1 || !slices.Contains(got[0].History, culprit) || len(got[0].History) > 2*around {
		t.Errorf("%+v", got)
	}
}

func TestComplete(t *testing.T) {
	item := func(n int64) Op { return at(0, 1, Op{Action: Append, Arg: n}) }
	ops := []Op{item(1), item(2), info(item(3)), failed(item(4)), at(0, 1, write(9))}
	for name, c := range map[string]struct {
		items []int64
		want  []string
	}{
		"all acknowledged":               {[]int64{1, 2}, nil},
		"the indeterminate one too":      {[]int64{3, 2, 1}, nil},
		"an acknowledged one is missing": {[]int64{2, 3}, []string{"acknowledged and lost"}},
		"a refused one":                  {[]int64{1, 2, 4}, []string{"refused and there"}},
		"one twice":                      {[]int64{1, 2, 2}, []string{"there twice"}},
		"one that nobody has sent":       {[]int64{1, 2, 9}, []string{"never sent and there"}},
		"nothing":                        {nil, []string{"acknowledged and lost", "acknowledged and lost"}},
	} {
		var kinds []string
		for _, v := range Complete(ops, Contents{Node: "a", Items: c.items}) {
			kinds = append(kinds, v.Kind)
		}
		if !slices.Equal(kinds, c.want) {
			t.Errorf("%s: %q, not %q", name, kinds, c.want)
		}
	}
}

func TestRegister(t *testing.T) {
	look := func(from, to int, index uint64, node string, epoch uint64) Look {
		return Look{From: "x", Call: time.Duration(from), Return: time.Duration(to), Index: index, Node: node, Epoch: cluster.Epoch(epoch)}
	}
	for name, c := range map[string]struct {
		looks []Look
		want  int
	}{
		"nothing was seen":                    {nil, 0},
		"it grows":                            {[]Look{look(0, 1, 5, "a", 1), look(2, 3, 5, "a", 1), look(4, 5, 9, "b", 2)}, 0},
		"an older value after a newer":        {[]Look{look(0, 1, 5, "a", 1), look(2, 3, 9, "b", 2), look(4, 5, 5, "a", 1)}, 1},
		"an older value beside a newer":       {[]Look{look(0, 1, 5, "a", 1), look(2, 6, 9, "b", 2), look(4, 5, 5, "a", 1)}, 0},
		"a read that took long saw the old":   {[]Look{look(0, 9, 5, "a", 1), look(2, 3, 9, "b", 2)}, 0},
		"two nodes at one index":              {[]Look{look(0, 1, 5, "a", 1), look(0, 1, 5, "b", 1)}, 1},
		"two nodes of one epoch":              {[]Look{look(0, 1, 5, "a", 1), look(2, 3, 9, "b", 1)}, 1},
		"the epoch goes back":                 {[]Look{look(0, 1, 5, "a", 3), look(2, 3, 9, "b", 2)}, 1},
		"the epoch goes back, over two reads": {[]Look{look(0, 1, 5, "a", 3), look(2, 3, 9, "b", 4), look(4, 5, 12, "a", 2)}, 1},
	} {
		if got := Register(c.looks); len(got) != c.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestTwoWriters(t *testing.T) {
	for name, c := range map[string]struct {
		ops  []Op
		want time.Duration
	}{
		"one after the other":           {[]Op{on("a", "1", at(0, 1, write(1))), on("b", "2", at(5, 6, write(2)))}, 0},
		"the first writes on":           {[]Op{on("a", "1", at(0, 1, write(1))), on("b", "2", at(5, 6, write(2))), on("b", "2", at(40, 41, write(3))), on("a", "1", at(16, 17, write(4)))}, 10 * time.Millisecond},
		"an answer that was late":       {[]Op{on("a", "1", at(0, 9, write(1))), on("b", "2", at(5, 6, write(2)))}, 0},
		"nothing of it acknowledged":    {[]Op{on("a", "1", at(0, 1, write(1))), on("b", "2", at(5, 6, write(2))), on("a", "1", at(7, 8, info(write(3))))}, 0},
		"reads are no writes":           {[]Op{on("a", "1", at(0, 1, write(1))), on("b", "2", at(5, 6, write(2))), on("a", "1", at(7, 8, read(3)))}, 0},
		"active again is another reign": {[]Op{on("a", "1", at(0, 1, write(1))), on("b", "2", at(5, 6, write(2))), on("a", "3", at(9, 10, write(3)))}, 0},
	} {
		total, found := TwoWriters(c.ops)
		if total != c.want || (len(found) > 0) != (c.want > 0) {
			t.Errorf("%s: %s, %+v", name, total, found)
		}
	}
}

func TestOutage(t *testing.T) {
	ops := []Op{at(0, 1, write(1)), at(2, 3, write(2)), at(3, 5, read(1)), at(5, 103, write(3)), at(300, 900, info(write(4)))}
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	for name, c := range map[string]struct{ from, to, want int }{
		"within":                        {0, 110, 100},
		"one that began before":         {50, 110, 53},
		"one that goes on":              {0, 1000, 897},
		"an earlier one is not its":     {104, 110, 6},
		"a time that ends in an outage": {0, 80, 77},
		"all of it":                     {110, 200, 90},
	} {
		if got := outage(ops, ms(c.from), ms(c.to)); got != ms(c.want) {
			t.Errorf("%s: %s, not %d ms", name, got, c.want)
		}
	}
}
