package unitfile

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Split takes a value apart as systemd.syntax(7) says: words are separated by
// white space, "..." and '...' keep it, backslashes escape as in C. Specifiers
// are %% and %n (the unit's name); a dollar sign is $$. A lone ";" stands for
// itself when it is written \; and everything else that systemd would expand is
// an error.
func Split(value, unit string) ([]string, error) {
	var words []string
	rest := strings.TrimLeft(value, " \t\n")
	for rest != "" {
		if lone(rest, `\;`) {
			words, rest = append(words, ";"), rest[2:]
		} else if lone(rest, ";") {
			return nil, errors.New("several commands in one line are not supported; write one line each")
		} else {
			word, after, err := next(rest, unit)
			if err != nil {
				return nil, err
			}
			words, rest = append(words, word), after
		}
		rest = strings.TrimLeft(rest, " \t\n")
	}
	return words, nil
}

// lone says whether s begins with word as a word of its own.
func lone(s, word string) bool {
	return strings.HasPrefix(s, word) && (len(s) == len(word) || strings.ContainsRune(" \t\n", rune(s[len(word)])))
}

// next takes one word off s, which does not begin with white space.
func next(s, unit string) (word, rest string, err error) {
	var b strings.Builder
	var quote byte
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case quote == 0 && strings.IndexByte(" \t\n", c) >= 0:
			return b.String(), s[i:], nil
		case c == '\\':
			r, n, err := escape(s[i:])
			if err != nil {
				return "", "", err
			}
			b.WriteString(r)
			i += n - 1
		case c == '%' || c == '$':
			r, err := expand(s[i:], unit)
			if err != nil {
				return "", "", err
			}
			b.WriteString(r)
			i++
		default:
			b.WriteByte(c)
		}
	}
	if quote != 0 {
		return "", "", fmt.Errorf("quote %c is not closed", quote)
	}
	return b.String(), "", nil
}

var simpleEscapes = map[byte]string{
	'a': "\a", 'b': "\b", 'f': "\f", 'n': "\n", 'r': "\r", 't': "\t", 'v': "\v",
	'\\': `\`, '"': `"`, '\'': "'", 's': " ",
}

// escape reads the escape sequence at the beginning of s and says how long it is.
func escape(s string) (text string, length int, err error) {
	if len(s) < 2 {
		return "", 0, errors.New("a backslash at the end of a line")
	}
	if t, ok := simpleEscapes[s[1]]; ok {
		return t, 2, nil
	}
	digits, base := 3, 8
	from := 1
	if s[1] == 'x' {
		digits, base, from = 2, 16, 2
	}
	if len(s) < from+digits {
		return "", 0, fmt.Errorf("unknown escape %q", s[:2])
	}
	n, err := strconv.ParseUint(s[from:from+digits], base, 8)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("unknown escape %q", s[:2])
	}
	return string([]byte{byte(n)}), from + digits, nil
}

func expand(s, unit string) (string, error) {
	if len(s) > 1 {
		switch s[:2] {
		case "%%":
			return "%", nil
		case "$$":
			return "$", nil
		case "%n":
			return unit, nil
		}
	}
	return "", fmt.Errorf("expansion of %q is not supported", s[:min(2, len(s))])
}

// Quote writes one word so that Split reads it back.
func Quote(word string) string {
	if word == ";" {
		return `\;`
	}
	escaped := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\t", `\t`, "%", "%%", "$", "$$").Replace(word)
	if escaped == "" || strings.ContainsAny(word, " \t\n'\"\\;") {
		return `"` + escaped + `"`
	}
	return escaped
}

// Join is Quote for a whole command line.
func Join(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = Quote(w)
	}
	return strings.Join(quoted, " ")
}

var spanUnits = map[string]time.Duration{
	"us": time.Microsecond, "ms": time.Millisecond, "": time.Second, "s": time.Second, "sec": time.Second,
	"m": time.Minute, "min": time.Minute, "h": time.Hour, "hr": time.Hour, "d": 24 * time.Hour,
}

// span reads a time span as systemd.time(7) says, of the units up to days. Zero
// and infinity are 0: no limit.
func span(value string) (time.Duration, error) {
	if value == "infinity" {
		return 0, nil
	}
	var sum time.Duration
	rest := strings.ReplaceAll(value, " ", "")
	if rest == "" {
		return 0, errors.New("an empty time span")
	}
	for rest != "" {
		digits := strings.IndexFunc(rest, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
		if digits < 0 {
			digits = len(rest)
		}
		n, err := strconv.ParseFloat(rest[:digits], 64)
		if err != nil {
			return 0, fmt.Errorf("%q is not a time span", value)
		}
		rest = rest[digits:]
		letters := strings.IndexFunc(rest, func(r rune) bool { return r < 'a' || r > 'z' })
		if letters < 0 {
			letters = len(rest)
		}
		unit, ok := spanUnits[rest[:letters]]
		if !ok {
			return 0, fmt.Errorf("%q is not a time span", value)
		}
		sum += time.Duration(n * float64(unit))
		rest = rest[letters:]
	}
	return sum, nil
}

// signal reads a signal by name, with or without SIG, or by number.
func signal(value string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(value); err == nil && n > 0 && n < 65 {
		return syscall.Signal(n), nil
	}
	name := strings.ToUpper(value)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if s := unix.SignalNum(name); s != 0 {
		return s, nil
	}
	return 0, fmt.Errorf("%q is not a signal", value)
}
