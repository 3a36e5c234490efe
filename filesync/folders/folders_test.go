package folders

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

func TestID(t *testing.T) {
	one, err := ID("/srv/n1", "/srv/n1/var/lib/notes")
	if err != nil {
		t.Fatal(err)
	}
	two, err := ID("/", "/var/lib/notes")
	if err != nil {
		t.Fatal(err)
	}
	if one != two || !regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*$`).MatchString(one) {
		t.Errorf("%q and %q", one, two)
	}
	other, err := ID("/", "/var/lib-notes")
	if err != nil {
		t.Fatal(err)
	}
	if other == one {
		t.Error("two paths, one id")
	}
	for _, path := range []string{"/", "/etc"} {
		if id, err := ID("/srv", path); err == nil {
			t.Errorf("%s under /srv is %q", path, id)
		}
	}
}

func TestForget(t *testing.T) {
	dir := t.TempDir()
	for _, id := range []string{"ours", "theirs"} {
		file := filepath.Join(dir, Marker(id))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := Forget(dir, "ours"); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, Marker("theirs"))); err != nil {
		t.Error(err)
	}
	if err := Forget(dir, "theirs"); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}
