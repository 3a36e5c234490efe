package cli

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/cluster"
)

func TestOptionsInEveryForm(t *testing.T) {
	file := filepath.Join(t.TempDir(), "options.yaml")
	text := "check_ttl_multiplier: 2.5\ncheck_fail_fast: false\nping_targets: [10.0.0.1, 10.0.0.2]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		given []string
		want  cluster.Options
	}{
		{[]string{file}, cluster.Options{"check_ttl_multiplier": "2.5", "check_fail_fast": "false", "ping_targets": "10.0.0.1,10.0.0.2"}},
		{[]string{`{"priority": 5, "no_failover": true}`}, cluster.Options{"priority": "5", "no_failover": "true"}},
		{[]string{"priority=5; no_failover = true ;"}, cluster.Options{"priority": "5", "no_failover": "true"}},
		{[]string{"priority=5", "priority=6"}, cluster.Options{"priority": "6"}},
		{[]string{file, "check_ttl_multiplier="}, cluster.Options{"check_ttl_multiplier": "", "check_fail_fast": "false", "ping_targets": "10.0.0.1,10.0.0.2"}},
	} {
		got, err := checked(c.given, false)
		if err != nil || !maps.Equal(got, c.want) {
			t.Errorf("%q: %v, %v, want %v", c.given, got, err, c.want)
		}
	}
}

func TestBadOptionsAreWrongUsage(t *testing.T) {
	for given, want := range map[string]string{
		"colour=red":              `unknown option "colour"`,
		"check_ttl_multiplier=-1": `option check_ttl_multiplier: value "-1"`,
		"sync_mode=maybe":         "strict, available or async",
		"colour=":                 `unknown option "colour"`,
		"no-such-file.yaml":       "neither an existing file nor of the form name=value",
		"{not json":               "--options",
		`{"a": {"b": 1}}`:         "has a mapping as its value",
	} {
		_, err := checked([]string{given}, false)
		var usage usageError
		if err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, &usage) || ExitCode(err) != exitUsage {
			t.Errorf("%q: %v (exit %d), want %q", given, err, ExitCode(err), want)
		}
	}
	if _, err := checked([]string{"sync_mode=strict"}, true); err == nil || !strings.Contains(err.Error(), "of the whole cluster") {
		t.Errorf("an option of the cluster was set for one node: %v", err)
	}
}
