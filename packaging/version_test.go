package packaging_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The versions of a repository, in the order in which they come, are in that order
// for dpkg too.
func TestVersion(t *testing.T) {
	dir := t.TempDir()
	script, err := os.ReadFile("version")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "packaging/version")
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, script, 0o755); err != nil {
		t.Fatal(err)
	}
	git := func(args ...string) {
		command(t, "git", append([]string{"-C", dir, "-c", "user.name=packaging", "-c", "user.email=packaging@localhost"}, args...)...)
	}
	commit := func() { git("commit", "--quiet", "--allow-empty", "--message=a commit") }
	git("init", "--quiet")
	if got := command(t, file); got != "dev\n" {
		t.Errorf("without a commit: %q", got)
	}
	git("add", ".")
	last := "0"
	for _, step := range []struct {
		do   func()
		want string
	}{
		{commit, `0\+1\.g[0-9a-f]{7}`},
		{commit, `0\+2\.g[0-9a-f]{7}`},
		{func() { git("tag", "v1.2.3-rc1") }, `1\.2\.3~rc1`},
		{commit, `1\.2\.3~rc1\+1\.g[0-9a-f]{7}`},
		{func() { git("tag", "v1.2.3") }, `1\.2\.3`},
		{func() { _ = os.WriteFile(file, append(script, '\n'), 0o755) }, `1\.2\.3\+dirty`},
		{func() { git("checkout", "."); commit() }, `1\.2\.3\+1\.g[0-9a-f]{7}`},
	} {
		step.do()
		got := strings.TrimSpace(command(t, file))
		if !regexp.MustCompile("^" + step.want + "$").MatchString(got) {
			t.Errorf("%s, want %s", got, step.want)
		}
		if !strings.HasSuffix(got, "dirty") && !strings.HasSuffix(last, "dirty") {
			command(t, "dpkg", "--compare-versions", last, "lt", got)
		}
		last = got
	}
}
