package filesync

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestIdleTmp(t *testing.T) {
	mode := os.Getenv("IDLE")
	if mode == "" {
		return
	}
	st, s := newSites(t, "a", "b", "c", "d")
	_ = st
	_ = mode
	_ = exec.Command
	st.activate("a", 1)
	n := 0
	fmt.Sscan(mode, &n)
	s[0].run()
	for i := 0; i < n; i++ {
		s[0].write(fmt.Sprintf("d%d/f%d", i%100, i), strings.Repeat(fmt.Sprint(i, " "), 200))
	}
	began := time.Now()
	for _, x := range s[1:] {
		x.run()
	}
	inSync(t, 1, s...)
	fmt.Println("in sync after", time.Since(began))
	time.Sleep(5 * time.Second)
	show := func() {
		b, _ := os.ReadFile("/proc/self/stat")
		f := strings.Fields(string(b))
		m, _ := os.ReadFile("/proc/self/status")
		for _, l := range strings.Split(string(m), "\n") {
			if strings.HasPrefix(l, "VmRSS") || strings.HasPrefix(l, "Threads") {
				fmt.Println(l)
			}
		}
		fmt.Println("utime", f[13], "stime", f[14])
	}
	show()
	time.Sleep(30 * time.Second)
	show()
}
