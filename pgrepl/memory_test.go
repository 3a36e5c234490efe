package pgrepl_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/understudy-ha/understudy/pgrepl"
	"github.com/understudy-ha/understudy/pgrepl/pgtest"
)

// sharedMemory lists the segments of System V shared memory, by id.
func sharedMemory(t *testing.T) (ids []string) {
	t.Helper()
	text, err := os.ReadFile("/proc/sysvipc/shm")
	must(t, err)
	for line := range bytes.Lines(text) {
		ids = append(ids, string(bytes.Fields(line)[1]))
	}
	return ids
}

// TestReleaseMemory: what a killed server leaves behind is given back, and what a
// server needs that runs is not.
func TestReleaseMemory(t *testing.T) {
	t.Parallel()
	i := pgtest.New(t, "127.10.9.31")
	i.Start(t)
	pid, err := os.ReadFile(filepath.Join(i.DataDir, "postmaster.pid"))
	must(t, err)
	segment := strings.Fields(strings.Split(string(pid), "\n")[6])[1]
	files := mapped(t, string(bytes.Fields(pid)[0]))
	dynamic := func() []string { // those of them that there are
		return slices.DeleteFunc(slices.Clone(files), func(f string) bool { _, err := os.Stat(f); return err != nil })
	}
	if !slices.Contains(sharedMemory(t), segment) || len(dynamic()) == 0 {
		t.Fatalf("the server runs with segment %s and %v", segment, dynamic())
	}
	must(t, pgrepl.ReleaseMemory(i.DataDir))
	if !slices.Contains(sharedMemory(t), segment) || len(dynamic()) == 0 {
		t.Fatal("the memory of a server that runs is gone")
	}
	i.Kill(t)
	if !slices.Contains(sharedMemory(t), segment) {
		t.Fatal("a killed server leaves nothing behind; what is this for?")
	}
	other := i.DataDir + ".old"
	must(t, os.Mkdir(other, 0o700))
	must(t, os.WriteFile(filepath.Join(other, "postmaster.pid"), pid, 0o600))
	must(t, pgrepl.ReleaseMemory(other))
	if !slices.Contains(sharedMemory(t), segment) {
		t.Error("the memory of another directory is gone")
	}
	must(t, pgrepl.ReleaseMemory(i.DataDir))
	if slices.Contains(sharedMemory(t), segment) || len(dynamic()) > 0 {
		t.Errorf("segment %s or %v is left", segment, dynamic())
	}
	must(t, pgrepl.ReleaseMemory(i.DataDir))
	i.Start(t)
}

// mapped lists the files of dynamic shared memory that a process has mapped.
func mapped(t *testing.T, pid string) (files []string) {
	t.Helper()
	text, err := os.ReadFile("/proc/" + pid + "/maps")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > 5 && strings.HasPrefix(words[5], "/dev/shm/PostgreSQL.") && !slices.Contains(files, words[5]) {
			files = append(files, words[5])
		}
	}
	return files
}
