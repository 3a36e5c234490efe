package lateflags

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func TestArgs(t *testing.T) {
	for line, want := range map[string]string{
		"a b":                         "[a b] json=false n=0 o=[]",
		"--json a -n 3":               "[a] json=true n=3 o=[]",
		"a --json --number=4 b":       "[a b] json=true n=4 o=[]",
		"a --json=false":              "[a] json=false n=0 o=[]",
		"--o 1,2 a --o x=y,z --o 3":   "[a] json=false n=0 o=[1,2 x=y,z 3]",
		"a -- --json -n":              "[a --json -n] json=false n=0 o=[]",
		"a -":                         "[a -] json=false n=0 o=[]",
		"a --nonsense":                "wrong flag: there is no flag --nonsense",
		"a --number":                  "wrong flag: --number needs a value",
		"a --number x --json":         "wrong flag: --number: parse error",
		"a --json=perhaps":            "wrong flag: --json=perhaps: parse error",
		"a --number 2 --number 5 b c": "[a b c] json=false n=5 o=[]",
	} {
		var got string
		app := &cli.App{
			DisableSliceFlagSeparator: true,
			Commands: []*cli.Command{{
				Name: "do",
				Flags: []cli.Flag{&cli.BoolFlag{Name: "json"}, &cli.IntFlag{Name: "number", Aliases: []string{"n"}},
					&cli.StringSliceFlag{Name: "o"}},
				Action: func(c *cli.Context) error {
					args, err := Args(c)
					got = fmt.Sprintf("%v json=%v n=%d o=%v", args, c.Bool("json"), c.Int("number"), c.StringSlice("o"))
					return err
				},
			}},
			ExitErrHandler: func(*cli.Context, error) {},
		}
		err := app.Run(append([]string{"app", "do"}, strings.Fields(line)...))
		if err != nil {
			got = err.Error()
			if !errors.Is(err, ErrFlag) {
				t.Errorf("%s: %v is no ErrFlag", line, err)
			}
		}
		if got != want {
			t.Errorf("%s:\n got %s\nwant %s", line, got, want)
		}
	}
}
