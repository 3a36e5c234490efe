package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documents are all that is checked, by their path from here.
var documents = []string{"../README.md", "architecture.md", "operations.md", "reliability.md", "security.md"}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// blocks returns the fenced blocks of a document, in their order.
func blocks(t *testing.T, file string) []Block {
	t.Helper()
	list, err := Blocks(file)
	if err != nil {
		t.Fatal(err)
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
