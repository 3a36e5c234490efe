package chaos

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// build makes understudy's binaries as they are now.
func build(t *testing.T, dir string) string {
	t.Helper()
	consul, err := exec.LookPath("consul")
	if err != nil {
		consul, err = filepath.Abs("../bin/consul")
	}
	if err == nil {
		err = os.Mkdir(dir, 0o755)
	}
	if err == nil {
		err = os.Symlink(consul, filepath.Join(dir, "consul"))
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "build", "-tags", "noquic", "-o", dir+"/", "../cmd/...", "../example/notes").CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	return dir
}

// Two minutes of faults on a real cluster, without a broken promise.
func TestChaos(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "us-ch-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	bin := build(t, filepath.Join(dir, "bin"))
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	var out bytes.Buffer
	report, err := Run(ctx, Options{
		Dir: filepath.Join(dir, "c"), FirstAddress: "127.63.1.11", Bin: bin, Nodes: 3, Seed: 1, For: 2 * time.Minute, Only: Kinds(),
		Out: &out, Progress: t.Output(),
	})
	t.Log(out.String())
	if err != nil {
		t.Fatalf("%v; logs are kept below %s", err, dir)
	}
	if len(report.Rounds) == 0 || len(report.Faults) == 0 || report.Acknowledged == 0 || report.Reads == 0 || report.Looks == 0 {
		t.Errorf("nothing was tested: %+v", report)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}
