package command

import (
	"context"
	"errors"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func self(t *testing.T) Runner {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	r, err := As(u.Username)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLinesAreSplitAtCarriageReturns(t *testing.T) {
	var lines []string
	out, err := self(t).Run(t.Context(), Op{Label: "print", Argv: []string{"/bin/sh", "-c", `cat; printf ' 1%%\r 50%%\r100%%\nlast' >&2`},
		Stdin: "input", Line: func(l string) { lines = append(lines, l) }})
	if err != nil || out != "input" {
		t.Errorf("%q %v", out, err)
	}
	if want := []string{"1%", "50%", "100%", "last"}; !slices.Equal(lines, want) {
		t.Errorf("lines %q", lines)
	}
}

func TestFailureSaysWhatTheProgramSaid(t *testing.T) {
	_, err := self(t).Run(t.Context(), Op{Label: "try", Argv: []string{"/bin/sh", "-c", "echo no luck >&2; exit 3"}})
	if err == nil || err.Error() != "try: exit status 3: no luck" {
		t.Errorf("%v", err)
	}
}

// TestCancelEndsTheWholeGroup: pg_basebackup has a child, which must not go on.
func TestCancelEndsTheWholeGroup(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var child int
	_, err := self(t).Run(ctx, Op{Label: "wait", Argv: []string{"/bin/sh", "-c", "sleep 1000 & echo $! >&2; wait"},
		Line: func(l string) { child, _ = strconv.Atoi(l); cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for alive(child) {
		if time.Now().After(deadline) {
			t.Fatalf("child %d lives", child)
		}
		time.Sleep(time.Millisecond)
	}
}

func alive(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(text), ") Z ") && syscall.Kill(pid, 0) == nil
}

func TestUnknownUser(t *testing.T) {
	if _, err := As("no such user"); err == nil {
		t.Error("an unknown user is taken")
	}
}

func TestOrdinaryUserIsNobodyElse(t *testing.T) {
	r := Runner{refused: errors.New("refused")}
	if _, err := r.Run(t.Context(), Op{Label: "run", Argv: []string{"/bin/true"}}); !errors.Is(err, r.refused) {
		t.Errorf("%v", err)
	}
	if err := r.Own("/tmp"); !errors.Is(err, r.refused) {
		t.Errorf("%v", err)
	}
}
