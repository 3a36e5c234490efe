package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/haproxy/haproxytest"
)

// named is a test as reliability.md names it: its package, itself, and a case.
var named = regexp.MustCompile("`([a-z][a-z/]*)\\.(Test[A-Za-z]+)(?:/([^`]+))?`")

var trapRow = regexp.MustCompile(`(?m)^\| (\d+) \|`)

// Every test that reliability.md names exists, with its case: a story of that
// name, or those words in the tests of the package. No trap is left out.
func TestTrapsAreTested(t *testing.T) {
	text := read(t, "reliability.md")
	found := named.FindAllStringSubmatch(text, -1)
	if len(found) < 80 {
		t.Errorf("only %d tests are named", len(found))
	}
	sources := map[string]string{}
	for _, m := range found {
		where, test, part := m[1], m[2], m[3]
		if _, known := sources[where]; !known {
			sources[where] = testsOf(t, where)
		}
		if !strings.Contains(sources[where], "func "+test+"(t *testing.T)") {
			t.Errorf("%s has no %s", where, test)
		}
		_, err := os.Stat(filepath.Join("..", where, "testdata", part+".txt"))
		if part != "" && err != nil && !strings.Contains(sources[where], `"`+part+`"`) {
			t.Errorf("%s.%s has no case %q", where, test, part)
		}
	}
	var traps []string
	for _, m := range trapRow.FindAllStringSubmatch(text, -1) {
		traps = append(traps, m[1])
	}
	for i, n := range traps {
		if want := i + 1; n != strconv.Itoa(want) {
			t.Fatalf("trap %s stands where %d should", n, want)
		}
	}
	if len(traps) != 60 {
		t.Errorf("%d traps, not 60", len(traps))
	}
}

// testsOf returns the text of the tests of a package.
func testsOf(t *testing.T, where string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", where, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s has no tests: %v", where, err)
	}
	var all strings.Builder
	for _, f := range files {
		all.WriteString(read(t, f))
	}
	return all.String()
}

// The load balancer that operations.md shows notices a failover in less than a
// second, and does not keep sessions with a node that is active no more (trap 56).
func TestLoadBalancerIsQuick(t *testing.T) {
	for _, b := range blocks(t, "operations.md") {
		if b.Lang != "haproxy" {
			continue
		}
		for _, word := range []string{"uri /status?mode=majority", "inter 300ms fastinter 100ms downinter 100ms fall 2 rise 1", "timeout connect 300ms", "on-marked-down shutdown-sessions", "server alpha 10.0.0.1:8008 check"} {
			if !strings.Contains(b.Text, word) {
				t.Errorf("%s: no %q", b.Where, word)
			}
		}
		haproxytest.Check(t, b.Text)
		return
	}
	t.Error("no configuration of HAProxy is shown")
}
