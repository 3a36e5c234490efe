package cluster

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options are settings by name, as an operator wrote them. They hold checked
// values only: see CheckOptions.
type Options map[string]string

// Option documents one setting.
type Option struct {
	Name    string `json:"name"`
	Default string `json:"default"`
	Unit    string `json:"unit"`
	PerNode bool   `json:"per_node"` // may be set for one node, above the cluster's
	Effect  string `json:"effect"`

	check func(value string) error
}

// KnownOptions returns every option, in the order of their names. An option
// that is not here is refused.
func KnownOptions() []Option { return slices.Clone(knownOptions) }

var knownOptions = []Option{
	{"check_fail_fast", "true", "true or false", true,
		"a check that meets an error fails at once instead of when its TTL ends", boolean},
	{"check_ttl_multiplier", "1", "factor", true,
		"stretches the TTL of every health check and of the leader's session; 3 suits an unstable network", factor},
	{"consul_raft_multiplier", "1", "factor", true,
		"Consul's raft_multiplier: stretches the timing of its own elections; takes effect when Consul restarts", raftFactor},
	{"file_rescan_interval", "60s", "duration", true,
		"how often every synced folder is scanned in full, beside the changes that the kernel reports; takes effect when file-sync restarts", positive},
	{"heal", string(HealMostRecent), "most-recent or majority", false,
		"whose database goes on after a partition in which both sides were written: that of the side that was written last, or always the majority's; what the other side wrote is exported first", oneOf(HealMostRecent, HealMajority)},
	{"max_lag_on_failover", "1048576", "bytes", false,
		"with sync_mode async: a standby that is further behind the last known position of the active is not promoted", count},
	{"minority_after", "10s", "duration", true,
		"how long a node must be cut off from the majority before it is judged to be in the minority", positive},
	{"minority_mode", string(MinorityActive), "active, read-only or off", true,
		"what a node in the minority does: serve its part of the cluster, with writes at risk; serve reads; or nothing", oneOf(MinorityActive, MinorityReadOnly, MinorityOff)},
	{"no_failover", "false", "true or false", true,
		"the node is never made active, neither by an election nor by set-active", boolean},
	{"ping_targets", "", "IP addresses, separated by commas", true,
		"beside the default gateway: a node that reaches none of them is isolated", addresses},
	{"preferred_primary", "", "node name", false,
		"the node that wins an election among equals, and that becomes active again when it has been well for a minute", nameOrNone},
	{"priority", "100", "number", true,
		"among equals in an election the node with the higher number wins", count},
	{"sync_mode", string(Available), "strict, available or async", false,
		"strict: commits wait until the sync set can confirm them; available: the set shrinks to the standbys there are; async: commits never wait", oneOf(Strict, Available, Async)},
}

func lookup(name string) (Option, bool) {
	i := slices.IndexFunc(knownOptions, func(o Option) bool { return o.Name == name })
	if i < 0 {
		return Option{}, false
	}
	return knownOptions[i], true
}

// CheckOptions refuses, by name, an option that does not exist, that has a bad
// value, or that cannot be set for one node when perNode is true.
func CheckOptions(o Options, perNode bool) error {
	for _, name := range slices.Sorted(maps.Keys(o)) {
		known, ok := lookup(name)
		switch {
		case !ok:
			return fmt.Errorf("unknown option %q; 'understudy cluster options list' shows those there are", name)
		case perNode && !known.PerNode:
			return fmt.Errorf("option %s is of the whole cluster and cannot be set for one node; use 'understudy cluster options set'", name)
		}
		if err := known.check(o[name]); err != nil {
			return fmt.Errorf("option %s: value %q: %w", name, o[name], err)
		}
	}
	return nil
}

// With returns o overlaid with above. An empty value in above removes the
// option, so that its default is in force again.
func (o Options) With(above Options) Options {
	out := Options{}
	maps.Copy(out, o)
	for name, value := range above {
		if value == "" {
			delete(out, name)
		} else {
			out[name] = value
		}
	}
	return out
}

// Get returns the value in force: what is set, else the default.
func (o Options) Get(name string) string {
	if v, ok := o[name]; ok {
		return v
	}
	known, _ := lookup(name)
	return known.Default
}

// Bool, Float, Int and Duration return the value in force of an option of that
// type. The values were checked when they were set; a name of another type is a
// fault of the caller and gives the zero value.
func (o Options) Bool(name string) bool { b, _ := strconv.ParseBool(o.Get(name)); return b }

// Float returns a factor.
func (o Options) Float(name string) float64 { f, _ := strconv.ParseFloat(o.Get(name), 64); return f }

// Int returns a count.
func (o Options) Int(name string) int64 { n, _ := strconv.ParseInt(o.Get(name), 10, 64); return n }

// Duration returns a duration.
func (o Options) Duration(name string) time.Duration {
	d, _ := time.ParseDuration(o.Get(name))
	return d
}

// List returns the items of a value that is separated by commas.
func (o Options) List(name string) []string {
	return items(o.Get(name))
}

func items(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

// Stretch multiplies a duration by check_ttl_multiplier.
func (o Options) Stretch(d time.Duration) time.Duration {
	return time.Duration(float64(d) * o.Float("check_ttl_multiplier"))
}

func boolean(s string) error {
	if s != "true" && s != "false" {
		return fmt.Errorf("must be true or false")
	}
	return nil
}

// factor is of TTLs. The shortest is 5 s, and an agent of Consul may wait 1 s for a new
// leader before it takes news of a check: a smaller factor would make each election of
// Consul's a failover.
func factor(s string) error {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f >= 0.3 && f <= 100) {
		return fmt.Errorf("must be a number from 0.3 to 100")
	}
	return nil
}

func raftFactor(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > 10 {
		return fmt.Errorf("must be a whole number from 1 to 10")
	}
	return nil
}

func positive(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Second {
		return fmt.Errorf("must be a duration of at least 1s, such as 90s or 5m")
	}
	return nil
}

func count(s string) error {
	if n, err := strconv.ParseInt(s, 10, 64); err != nil || n < 0 {
		return fmt.Errorf("must be a whole number from 0 on")
	}
	return nil
}

func addresses(s string) error {
	for _, a := range items(s) {
		if err := CheckAddress(a); err != nil {
			return err
		}
	}
	return nil
}

func nameOrNone(s string) error {
	if s == "" {
		return nil
	}
	return CheckName(s)
}

// oneOf admits these values alone.
func oneOf[S ~string](values ...S) func(string) error {
	return func(s string) error {
		if slices.Contains(values, S(s)) {
			return nil
		}
		var names []string
		for _, v := range values {
			names = append(names, string(v))
		}
		last := len(names) - 1
		return fmt.Errorf("must be %s or %s", strings.Join(names[:last], ", "), names[last])
	}
}
