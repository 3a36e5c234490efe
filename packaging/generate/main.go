// Command generate writes what a package has that follows from the code and the
// documentation: man pages, completion for fish, and the examples. It is run from
// the root of the repository; its argument is the folder that stands for /.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"

	"github.com/understudy-ha/understudy/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: generate FOLDER")
		os.Exit(2)
	}
	if err := generate(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func generate(root string) error {
	files := map[string]string{}
	command, err := cli.App().ToMarkdown()
	if err != nil {
		return fmt.Errorf("describe the command: %w", err)
	}
	files["usr/share/man/man1/understudy.1"] = man("% understudy 1\n\n" + command + commandEnd)
	if files["usr/share/fish/vendor_completions.d/understudy.fish"], err = cli.App().ToFishCompletion(); err != nil {
		return fmt.Errorf("complete for fish: %w", err)
	}
	pages, err := filepath.Glob("packaging/man/*.md")
	if err != nil {
		return err
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		files["usr/share/man/man8/"+strings.TrimSuffix(filepath.Base(page), ".md")] = man(string(text))
	}
	operations, err := os.ReadFile("docs/operations.md")
	if err != nil {
		return err
	}
	for name, language := range map[string]string{"understudy.yaml": "yaml", "haproxy.cfg": "haproxy"} {
		text, err := only(string(operations), language)
		if err != nil {
			return fmt.Errorf("docs/operations.md: %w", err)
		}
		files["usr/share/doc/understudy/examples/"+name] = text
	}
	for name, text := range files {
		err = errors.Join(err, write(filepath.Join(root, name), text))
	}
	return err
}

// commandEnd is what the page of the command has beside its description.
const commandEnd = `
# EXIT STATUS

0: done. 1: failed; standard error says what was tried, on which node, why it failed and what to do. 2: wrong usage. 3: the cluster has no active
node. 4: timed out; the command can be repeated.

# FILES

**/etc/understudy/understudy.yaml**: this host's configuration; /usr/share/doc/understudy/examples has one.

# SEE ALSO

**understudy-handler-runner**(8), **understudy-check-runner**(8), **understudy-consul-watcher**(8), **understudy-file-sync**(8), **understudy-postgres-helper**(8),
**understudy-consul**(8), */usr/share/doc/understudy/operations.md.gz*
`

func man(markdown string) string { return string(md2man.Render([]byte(markdown))) }

// only returns the text of the one code block in a language.
func only(markdown, language string) (string, error) {
	before, after, _ := strings.Cut(markdown, "\n```"+language+"\n")
	text, rest, closed := strings.Cut(after, "\n```\n")
	if before == "" || !closed || strings.Contains(rest, "\n```"+language+"\n") {
		return "", fmt.Errorf("there is not one block in %s", language)
	}
	return text + "\n", nil
}

func write(file, text string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(text), 0o644)
}
