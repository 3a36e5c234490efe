package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Members are the hosts that operations.md speaks of.
var Members = []string{"alpha", "beta", "gamma"}

// Block is a fenced block of a document.
type Block struct {
	Where string            // document:line
	Lang  string            // first word after the fence
	Attrs map[string]string // the others, as in on=alpha
	Text  string
}

// Languages of blocks with command lines.
const (
	LangRun  = "sh"   // run on nodes of dev mode, and for hosts on whole machines too
	LangHost = "bash" // run on whole machines alone: nothing less will do
)

// Blocks returns the fenced blocks of a document, in their order.
func Blocks(file string) (list []Block, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read blocks: %w", err)
	}
	var open *Block
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		fence, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case isFence && open == nil:
			words := strings.Fields(fence)
			if len(words) == 0 {
				return nil, fmt.Errorf("%s:%d: a block without a language", file, n)
			}
			open = &Block{Where: fmt.Sprintf("%s:%d", filepath.Base(file), n), Lang: words[0], Attrs: map[string]string{}}
			for _, w := range words[1:] {
				k, v, _ := strings.Cut(w, "=")
				open.Attrs[k] = v
			}
		case isFence:
			list = append(list, *open)
			open = nil
		case open != nil:
			open.Text += line
		}
	}
	if open != nil {
		return nil, fmt.Errorf("%s: the block is not closed", open.Where)
	}
	return list, nil
}

// ForHosts are the blocks of a document for whole hosts, in their order. Those that
// are shown again, and those about delta, the runner, are left out.
func ForHosts(file string) ([]Block, error) {
	all, err := Blocks(file)
	if err != nil {
		return nil, err
	}
	var list []Block
	for _, b := range all {
		_, again := b.Attrs["again"]
		runner := b.Attrs["on"] == "delta" || strings.Contains(b.Text, "delta")
		switch on := b.Attrs["on"]; {
		case on != "" && on != "dev" && !again && !runner:
			list = append(list, b)
		case on == "" && b.Lang == LangHost && !runner:
			return nil, fmt.Errorf("%s: no host is named that runs it", b.Where)
		}
	}
	return list, nil
}

// Clipboard is what a person would copy from the output of one block for later ones.
type Clipboard struct {
	token   string // the last join token that was printed
	tokenID string // the last open one that was listed
}

var (
	tokenWord = regexp.MustCompile(`(?m)^[a-z2-7]{98,}$`)
	openToken = regexp.MustCompile(`(?m)^([0-9a-f]{16}) .* open$`)
)

// Copy takes what is needed later from the output of a block.
func (c *Clipboard) Copy(out string) {
	if w := tokenWord.FindString(out); w != "" {
		c.token = w
	}
	if m := openToken.FindStringSubmatch(out); m != nil {
		c.tokenID = m[1]
	}
}

// Paste fills it in where a block says TOKEN or TOKEN_ID.
func (c *Clipboard) Paste(text string) string {
	return strings.NewReplacer("TOKEN_ID", c.tokenID, "TOKEN", c.token).Replace(text)
}
