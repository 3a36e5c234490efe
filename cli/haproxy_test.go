package cli

import (
	"strings"
	"testing"
)

// A wrong command line is named before anything is looked at.
func TestHAProxyConfigRefuses(t *testing.T) {
	for line, words := range map[string]string{
		"--port http":                    `--port: "http" is neither a port nor two`,
		"--port 80:":                     `--port: "80:" is neither a port nor two`,
		"--postgres-port 70000":          "--postgres-port: 70000 is not a port",
		"--read-only-port -1":            "--read-only-port: -1 is not a port",
		"--bind lb.example":              `--bind: "lb.example" is not an IP address`,
		"--ca-file ca.crt":               "--ca-file is for --tls",
		"--plain --tls":                  "--plain has no --tls",
		"--plain --majority-only":        "--plain has no --majority-only",
		"--plain --read-only-port 5433":  "--plain has no --read-only-port",
		"alpha":                          "1 arguments given, 0 wanted",
		"--postgres-port 5432 --ports 1": "see 'understudy haproxy-config --help'",
	} {
		err := App().RunContext(t.Context(), append([]string{"understudy", "--root", t.TempDir(), "haproxy-config"}, strings.Fields(line)...))
		if ExitCode(err) != exitUsage || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: exit code %d, %v; want one with %q", line, ExitCode(err), err, words)
		}
	}
}
