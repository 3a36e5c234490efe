package cluster

import (
	"maps"
	"strings"
	"testing"
)

func TestWhyLost(t *testing.T) {
	for name, c := range map[string]struct {
		failing map[string]string
		want    string
	}{
		"a check fails":     {map[string]string{"postgres-answer": "connection refused\nmore", "files": "3 to fetch"}, "n1 lost the lock: its check postgres-answer fails: connection refused"},
		"without a word":    {map[string]string{"services": ""}, "n1 lost the lock: its check services fails"},
		"the host is gone":  {map[string]string{serfHealth: "Agent not live or unreachable"}, "n1 lost the lock: Consul's servers do not hear it"},
		"both":              {map[string]string{serfHealth: "", "storage": "is full"}, "n1 lost the lock: its check storage fails: is full; Consul's servers do not hear it"},
		"frozen or cut off": {nil, "n1 did not renew its session, though no check of it fails"},
	} {
		if got := WhyLost("n1", c.failing); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestChanged(t *testing.T) {
	got := Changed("n1", Options{"priority": "5", "heal": "majority", "no_failover": "true"}, Options{"priority": "6", "heal": "majority", "ping_targets": "10.0.0.1"})
	var said []string
	for _, c := range got {
		said = append(said, c.String())
	}
	want := "no_failover of n1: true -> default; ping_targets of n1: default -> 10.0.0.1; priority of n1: 5 -> 6"
	if strings.Join(said, "; ") != want {
		t.Errorf("%q, not %q", strings.Join(said, "; "), want)
	}
	if c := (OptionChange{Name: "sync_mode", New: "strict"}); c.String() != "sync_mode: default -> strict" {
		t.Errorf("%q", c)
	}
}

// What is undone is what was changed, and only while it is so still.
func TestUndo(t *testing.T) {
	v := View{
		Info:  &Info{Options: Options{"heal": "majority", "sync_mode": "strict"}},
		Nodes: map[string]Node{"n1": {Name: "n1", Options: Options{"priority": "6"}}},
	}
	for name, c := range map[string]struct {
		changes []OptionChange
		want    map[string]Options
		problem string
	}{
		"of the cluster":     {[]OptionChange{{"", "heal", "", "majority"}, {"", "ping_targets", "10.0.0.1", ""}}, map[string]Options{"": {"heal": "", "ping_targets": "10.0.0.1"}}, ""},
		"of a node":          {[]OptionChange{{"n1", "priority", "5", "6"}}, map[string]Options{"n1": {"priority": "5"}}, ""},
		"changed since":      {[]OptionChange{{"", "sync_mode", "", "async"}}, nil, "sync_mode has been changed since, and is strict now"},
		"taken away since":   {[]OptionChange{{"n1", "no_failover", "", "true"}}, nil, "no_failover has been changed since, and is default now"},
		"of a node that was": {[]OptionChange{{"n2", "priority", "", "6"}}, nil, "n2 is no member any more"},
	} {
		got, err := Undo(v, c.changes)
		if !maps.EqualFunc(got, c.want, maps.Equal) || err == nil != (c.problem == "") || err != nil && err.Error() != c.problem {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// A transition that several things may cause says which it was.
func TestDetail(t *testing.T) {
	active := Observation{
		Self: "a", State: Active, LeaseEpoch: 1, Lease: Yes, Running: Yes, Primary: Yes,
		View: View{Nodes: map[string]Node{"a": {Name: "a", Kind: Manager}}, NextMaster: Assignment{Node: "a", Epoch: 1}},
	}
	for name, c := range map[string]struct {
		change func(*Observation)
		want   string
	}{
		"the lease":      {func(o *Observation) { o.Lease = No }, "the lease has ended"},
		"another":        {func(o *Observation) { o.View.NextMaster = Assignment{Node: "b", Epoch: 2} }, "b is named for epoch 2"},
		"PostgreSQL":     {func(o *Observation) { o.Running, o.Primary = No, Unknown }, "PostgreSQL does not run"},
		"no primary":     {func(o *Observation) { o.Primary = No }, "PostgreSQL is a standby"},
		"several things": {func(o *Observation) { o.Lease, o.Running = No, No }, "the lease has ended; PostgreSQL does not run"},
	} {
		o := active
		c.change(&o)
		if d := Decide(o); d.To != Fenced || d.Detail != c.want {
			t.Errorf("%s: to %s, %q", name, d.To, d.Detail)
		}
	}
	if d := Decide(active); d.To != Active || d.Detail != "" {
		t.Errorf("well: %+v", d)
	}
	o := active
	o.State, o.Attempt = Promoting, No
	if d := Decide(o); d.Detail != "the promotion has failed" {
		t.Errorf("a failed promotion: %+v", d)
	}
}
