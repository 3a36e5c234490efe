package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	// patience is how long a request is tried again while Consul's leader changes.
	patience = 2 * time.Second
	tryAgain = 100 * time.Millisecond
	// leaderWithin is what Consul's servers need to elect a leader, when theirs has
	// died, and a little more.
	leaderWithin = 8 * time.Second
)

// Patiently does what may be done twice, again and again while Consul elects a leader.
func Patiently(ctx context.Context, do func() error) error {
	end := time.Now().Add(leaderWithin)
	err := do()
	for errors.Is(err, ErrNoLeader) && time.Now().Before(end) && ctx.Err() == nil {
		sleep(ctx, 2*tryAgain)
		err = do()
	}
	return err
}

// refusing are the words of a server that has just ceased to lead, or of one that
// asked it: nothing has been done. An agent that knows of no leader has waited for one
// by itself.
var refusing = []string{"node is not the leader", "leadership transfer in progress"}

// moving are these and those after which a write may have been done, or not.
var moving = append([]string{"leadership lost"}, refusing...)

// patient tries again what a change of Consul's leader has spoiled: reads, and writes
// that have not been done. Commands are to be patient: they would fail at a moment in
// which nothing is wrong. Daemons are to know at once.
type patient struct{ *http.Transport }

// RoundTrip is that of http.RoundTripper. Long polls, and bodies that cannot be read
// anew, are sent once.
func (p patient) RoundTrip(r *http.Request) (*http.Response, error) {
	words := refusing
	if r.Method == http.MethodGet {
		words = moving
	}
	again := r
	for began := time.Now(); ; {
		answer, err := p.Transport.RoundTrip(again)
		unique := r.URL.Query().Has("index") || r.Body != nil && r.GetBody == nil
		if err != nil || answer.StatusCode != http.StatusInternalServerError || unique {
			return answer, err
		}
		text, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if err != nil {
			return nil, err
		}
		answer.Body = io.NopCloser(bytes.NewReader(text))
		if !says(string(text), words) || time.Since(began) > patience {
			return answer, nil
		}
		if again, err = anew(r); err != nil {
			return nil, err
		}
		sleep(r.Context(), tryAgain)
	}
}

// anew is a request to be sent again, from its beginning.
func anew(r *http.Request) (*http.Request, error) {
	if r.Body == nil {
		return r, nil
	}
	body, err := r.GetBody()
	r = r.Clone(r.Context())
	r.Body = body
	return r, err
}

// says looks for any of the words.
func says(text string, words []string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
}
