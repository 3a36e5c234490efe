package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documents are all that is checked, by their path from here.
var documents = []string{"../README.md", "architecture.md", "operations.md", "reliability.md", "security.md"}

// block is a fenced block of a document.
type block struct {
	where string            // document:line
	lang  string            // first word after the fence
	attrs map[string]string // the others, as in on=alpha
	text  string
}

// Languages of blocks with command lines.
const (
	langRun  = "sh"   // run by TestTour and TestHosts, and for hosts by TestMachines too
	langHost = "bash" // run by TestMachines alone: only a whole machine will do
)

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// blocks returns the fenced blocks of a document, in their order.
func blocks(t *testing.T, file string) (list []block) {
	t.Helper()
	var open *block
	n := 0
	for line := range strings.Lines(read(t, file)) {
		n++
		fence, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case isFence && open == nil:
			words := strings.Fields(fence)
			if len(words) == 0 {
				t.Fatalf("%s:%d: a block without a language", file, n)
			}
			open = &block{where: fmt.Sprintf("%s:%d", filepath.Base(file), n), lang: words[0], attrs: map[string]string{}}
			for _, w := range words[1:] {
				k, v, _ := strings.Cut(w, "=")
				open.attrs[k] = v
			}
		case isFence:
			list = append(list, *open)
			open = nil
		case open != nil:
			open.text += line
		}
	}
	if open != nil {
		t.Fatalf("%s: the block is not closed", open.where)
	}
	return list
}

var span = regexp.MustCompile("`([^`\n]+)`")

// spans returns the pieces of code within the prose of a document.
func spans(t *testing.T, file string) (list []string) {
	t.Helper()
	fenced := false
	for line := range strings.Lines(read(t, file)) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
			continue
		}
		for _, m := range span.FindAllStringSubmatch(line, -1) {
			if !fenced {
				list = append(list, m[1])
			}
		}
	}
	return list
}

var link = regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)

// Links to files of the tree lead somewhere.
func TestLinks(t *testing.T) {
	seen := 0
	for _, file := range documents {
		for _, m := range link.FindAllStringSubmatch(read(t, file), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			seen++
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
	if seen < 5 {
		t.Errorf("only %d links found", seen)
	}
}
