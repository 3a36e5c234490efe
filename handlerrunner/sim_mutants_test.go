package handlerrunner

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

var simMutants = flag.Uint64("sim.mutants", 0, "seeds in which the simulator must catch every mutant of testdata/mutants.json; 0: 1500, and only the quick ones")

// mutant is one safety measure, switched off in the real source. Old stands
// exactly once in the file.
type mutant struct {
	Name  string `json:"name"`
	Quick bool   `json:"quick"`
	File  string `json:"file"` // from the top of the repository
	Old   string `json:"old"`
	New   string `json:"new"`
	Nodes int    `json:"nodes"` // of the clusters that show it; 0: 3
}

var caught = regexp.MustCompile(`seed (\d+), \d+ nodes, is the (\d+)\. of this run: (.*)`)

// Without any one of its safety measures the code breaks an invariant, and the
// simulator sees it.
func TestMutants(t *testing.T) {
	text, err := os.ReadFile("testdata/mutants.json")
	if err != nil {
		t.Fatal(err)
	}
	var mutants []mutant
	if err := json.Unmarshal(text, &mutants); err != nil {
		t.Fatal(err)
	}
	seeds := *simMutants
	if seeds == 0 {
		seeds = 1500
	}
	oneAtATime(t)
	dir := simDir(t)
	for _, m := range mutants {
		t.Run(m.Name, func(t *testing.T) {
			overlay := m.overlay(t)
			if *simMutants == 0 && !m.Quick {
				return
			}
			began := time.Now()
			nodes := cmp.Or(m.Nodes, 3)
			out := runMutant(t, overlay, seeds, nodes)
			found := caught.FindStringSubmatch(out)
			if found == nil {
				t.Fatalf("survives %d seeds:\n%s", seeds, out)
			}
			seed, err := strconv.ParseUint(found[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			// What breaks the code as it is says nothing of the mutant.
			if broken, _, _ := simulate(t, dir, seed, nodes, false); broken != "" {
				t.Fatalf("seed %d breaks the code as it is, too: %s", seed, broken)
			}
			t.Logf("| %s | %s | %s | %.0f s |", m.Name, found[3], found[2], time.Since(began).Seconds())
		})
	}
}

// overlay writes the mutated file and what the compiler must be told.
func (m mutant) overlay(t *testing.T) string {
	file, err := filepath.Abs(filepath.Join("..", m.File))
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(source), m.Old); n != 1 {
		t.Fatalf("%s has the text %d times, want once: %s", m.File, n, m.Old)
	}
	mutated := filepath.Join(t.TempDir(), "mutated.go")
	if err := os.WriteFile(mutated, []byte(strings.Replace(string(source), m.Old, m.New, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[string]map[string]string{"Replace": {file: mutated}})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(overlay, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return overlay
}

// runMutant simulates the mutated code and returns what the test said.
func runMutant(t *testing.T, overlay string, seeds uint64, nodes int) string {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	binary := filepath.Join(t.TempDir(), "mutant.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-tags", "noquic", "-overlay", overlay, "-o", binary, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	run := exec.CommandContext(ctx, binary, "-test.run", "^TestSimulation$", "-sim.nodes", strconv.Itoa(nodes), "-sim.seeds", fmt.Sprint(seeds))
	out, _ := run.CombinedOutput() // that it fails is wanted
	return string(out)
}
