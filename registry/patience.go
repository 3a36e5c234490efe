package registry

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	// patience is how long a read is tried again while Consul's leader changes.
	patience = 2 * time.Second
	again    = 100 * time.Millisecond
)

// moving are the words of a server that has just ceased to lead, or of one that
// asked it. An agent that knows of no leader has waited for one by itself.
var moving = []string{"node is not the leader", "leadership transfer in progress", "leadership lost"}

// patient tries reads again that a change of Consul's leader has spoiled. Commands are
// to be patient: they would fail at a moment in which nothing is wrong. Daemons are to
// know at once.
type patient struct{ *http.Transport }

// RoundTrip is that of http.RoundTripper. Long polls and writes are sent once.
func (p patient) RoundTrip(r *http.Request) (*http.Response, error) {
	for began := time.Now(); ; {
		answer, err := p.Transport.RoundTrip(r)
		read := r.Method == http.MethodGet && !r.URL.Query().Has("index")
		if err != nil || answer.StatusCode != http.StatusInternalServerError || !read {
			return answer, err
		}
		text, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if err != nil {
			return nil, err
		}
		answer.Body = io.NopCloser(bytes.NewReader(text))
		if !says(string(text), moving) || time.Since(began) > patience {
			return answer, nil
		}
		sleep(r.Context(), again)
	}
}

// says looks for any of the words.
func says(text string, words []string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
}
