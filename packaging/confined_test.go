package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

// What systemd-analyze thinks of each unit: 10 is one that may do anything.
func TestUnitsAreConfined(t *testing.T) {
	const most = 2.0
	level := regexp.MustCompile(`Overall exposure level for .*: ([0-9.]+) `)
	for _, name := range Daemons() {
		text, err := Unit(name)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", file).CombinedOutput()
		found := level.FindSubmatch(out)
		if err != nil || found == nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		if got, err := strconv.ParseFloat(string(found[1]), 64); err != nil || got > most {
			t.Errorf("%s: %s, want at most %.1f:\n%s", name, found[1], most, out)
		}
	}
}

// The rule names the units whole, and nothing else is let through.
func TestPolkitRule(t *testing.T) {
	rule, err := PolkitRule([]string{"postgresql@15-main.service", "notes-web.service"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`(?s)"notes-web.service": \[\s*"start",\s*"stop",\s*"kill"\s*\]`, `(?s)"understudy-consul-watcher.service": \[\s*"stop"\s*\]`, `(?s)"postgresql@15-main.service": \[`,
	} {
		if !regexp.MustCompile(want).MatchString(rule) {
			t.Errorf("%s is missing:\n%s", want, rule)
		}
	}
}
