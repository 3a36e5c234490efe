package probe

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func at(ms int) time.Time { return noon.Add(time.Duration(ms) * time.Millisecond) }

// acked is a journal that began at noon and got acknowledgements from a at these
// milliseconds.
func acked(ms ...int) Journal {
	j := Journal{Began: noon, First: 1, Next: int64(len(ms)) + 1}
	for i, m := range ms {
		j.Acks = append(j.Acks, Ack{ID: int64(i) + 1, At: at(m), Node: "a"})
	}
	return j
}

func TestLongest(t *testing.T) {
	for name, c := range map[string]struct {
		journal  Journal
		from, to int
		want     [2]int
	}{
		"a gap within":                       {acked(5, 10, 300, 305), 0, 400, [2]int{10, 300}},
		"one that began before the window":   {acked(5, 10, 300, 305), 100, 310, [2]int{10, 300}},
		"one that ends after the window":     {acked(5, 10, 300, 305), 8, 100, [2]int{10, 100}},
		"longer ones outside do not count":   {acked(5, 500, 505, 530, 1500), 502, 530, [2]int{505, 530}},
		"one under way ends with the window": {acked(5, 10), 8, 900, [2]int{10, 900}},
		"before the first acknowledgement":   {acked(700, 705), 0, 710, [2]int{0, 700}},
		"the next fault is not of this one":  {acked(5, 300, 310, 900), 8, 312, [2]int{5, 300}},
		"no acknowledgement at all":          {acked(), 0, 710, [2]int{0, 710}},
		"a writer that has not begun":        {Journal{}, 0, 710, [2]int{0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			g := c.journal.Longest(at(c.from), at(c.to))
			if !g.From.Equal(at(c.want[0])) || !g.To.Equal(at(c.want[1])) {
				t.Errorf("got %v to %v", g.From.Sub(noon), g.To.Sub(noon))
			}
		})
	}
}

func TestLongestNamesBothEnds(t *testing.T) {
	j := acked(5, 10, 300)
	j.Acks[2].Node = "b"
	g := j.Longest(at(20), at(400))
	if g.Before != "a" || g.After != "b" || g.Length() != 290*time.Millisecond {
		t.Errorf("got %+v, %v", g, g.Length())
	}
}

func TestSummarize(t *testing.T) {
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		series []time.Duration
		want   Summary
	}{
		"none":        {nil, Summary{}},
		"one":         {[]time.Duration{3 * ms}, Summary{3 * ms, 3 * ms, 3 * ms}},
		"odd":         {[]time.Duration{9 * ms, 1 * ms, 2 * ms}, Summary{2 * ms, 1 * ms, 9 * ms}},
		"even":        {[]time.Duration{8 * ms, 1 * ms, 2 * ms, 4 * ms}, Summary{3 * ms, 1 * ms, 8 * ms}},
		"all of them": {[]time.Duration{5 * ms, 5 * ms}, Summary{5 * ms, 5 * ms, 5 * ms}},
	} {
		if got := Summarize(c.series); got != c.want {
			t.Errorf("%s: %+v, not %+v", name, got, c.want)
		}
	}
}

func TestJudge(t *testing.T) {
	answer := func(severity, code string) error { return &pgconn.PgError{SeverityUnlocalized: severity, Code: code} }
	for name, c := range map[string]struct {
		err         error
		unconfirmed bool
		want        Outcome
	}{
		"success":                              {nil, false, Acknowledged},
		"success that no standby confirmed":    {nil, true, Indeterminate},
		"refused by a standby":                 {answer("ERROR", "25006"), false, Refused},
		"cancelled before it committed":        {answer("ERROR", "57014"), false, Refused},
		"an error after an unconfirmed commit": {answer("ERROR", "57014"), true, Indeterminate},
		"completion unknown":                   {answer("ERROR", completionUnknown), false, Indeterminate},
		"the session was ended":                {answer("FATAL", "57P01"), false, Indeterminate},
		"the server crashed":                   {answer("PANIC", "XX000"), false, Indeterminate},
		"a broken connection":                  {errors.New("unexpected EOF"), false, Indeterminate},
	} {
		if got := judge(c.err, c.unconfirmed); got != c.want {
			t.Errorf("%s: %v, not %v", name, got, c.want)
		}
	}
}

func TestExamine(t *testing.T) {
	// 1 and 2 Acknowledged, 3 and 4 indeterminate, 5 refused.
	j := Journal{First: 1, Next: 6, Acks: []Ack{{ID: 1}, {ID: 2}}, Indeterminate: []int64{3, 4}, Refused: []int64{5}}
	for name, c := range map[string]struct {
		ids  []int64
		want Finding
	}{
		"all acknowledged":          {[]int64{2, 1}, Finding{Rows: 2}},
		"an indeterminate one too":  {[]int64{1, 2, 3}, Finding{Rows: 3, Landed: 1}},
		"an acknowledged one gone":  {[]int64{1, 3}, Finding{Rows: 2, Landed: 1, Lost: []int64{2}}},
		"one twice":                 {[]int64{1, 1, 1, 2}, Finding{Rows: 4, Twice: []int64{1}}},
		"a refused one":             {[]int64{1, 2, 5}, Finding{Rows: 3, Uncalled: []int64{5}}},
		"one that was never sent":   {[]int64{1, 2, 9}, Finding{Rows: 3, Uncalled: []int64{9}}},
		"nothing at all":            {nil, Finding{Lost: []int64{1, 2}}},
		"one from before its first": {[]int64{0, 1, 2}, Finding{Rows: 3, Uncalled: []int64{0}}},
	} {
		got := Examine(j, "", c.ids)
		if got.Rows != c.want.Rows || got.Landed != c.want.Landed || !slices.Equal(got.Lost, c.want.Lost) ||
			!slices.Equal(got.Twice, c.want.Twice) || !slices.Equal(got.Uncalled, c.want.Uncalled) {
			t.Errorf("%s: %+v, not %+v", name, got, c.want)
		}
		if sound := c.want.Lost == nil && c.want.Twice == nil && c.want.Uncalled == nil; got.Sound() != sound {
			t.Errorf("%s: sound is %v", name, got.Sound())
		}
	}
}

// What a node acknowledged while it was cut off is at risk; what it had
// acknowledged before, on the cluster's timeline, is not.
func TestDiscount(t *testing.T) {
	j := Journal{Began: noon, First: 1, Next: 7, Acks: []Ack{
		{ID: 1, At: at(1), Node: "a", Timeline: "1"}, {ID: 2, At: at(11), Node: "a", Timeline: "1"}, {ID: 3, At: at(12), Node: "b", Timeline: "2"},
		{ID: 4, At: at(13), Node: "a", Timeline: "17"}, {ID: 5, At: at(40), Node: "a", Timeline: "3"},
	}}
	if n := j.Discount("a", "1", at(10), at(30)); n != 1 || !slices.Equal(j.Indeterminate, []int64{4}) || len(j.Acks) != 4 {
		t.Errorf("%d: %+v", n, j)
	}
}
