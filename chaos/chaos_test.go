package chaos

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Two minutes of faults on a real cluster, without a broken promise.
func TestChaos(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "us-ch-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	bin, err := filepath.Abs("../bin")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	var out bytes.Buffer
	report, err := Run(ctx, Options{
		Dir: filepath.Join(dir, "c"), FirstAddress: "127.63.1.11", Bin: bin, Nodes: 3, Seed: 1, For: 2 * time.Minute,
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
