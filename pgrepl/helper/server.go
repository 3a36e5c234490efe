package helper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"

	"github.com/understudy-ha/understudy/pgrepl"
)

// Server answers calls.
type Server struct {
	Postgres   *pgrepl.Server
	Divergence string // folder of the exports
	Log        *slog.Logger
}

// Serve answers every call that comes in, each in a goroutine of its own, until ctx
// ends. It then ends what is being done, and closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var calls sync.WaitGroup
	defer calls.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept calls: %w", err)
		}
		calls.Go(func() {
			defer conn.Close()
			s.answer(ctx, conn)
		})
	}
}

// answer does what one caller asks for.
func (s *Server) answer(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, out := bufio.NewReader(conn), json.NewEncoder(conn)
	var q request
	if line, err := in.ReadBytes('\n'); err != nil || json.Unmarshal(line, &q) != nil {
		s.Log.Warn("a call that is none", "error", err)
		return
	}
	go func() { // the caller says no more; that it has gone away ends the call
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	var mu sync.Mutex
	say := func(r response) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(r) // to a caller that has gone away there is nothing to say
	}
	result, err := s.do(ctx, q, func(p string) { say(response{Progress: p}) })
	r := response{Done: true, Result: result}
	if err != nil {
		r.Error, r.Kinds = err.Error(), kindsOf(err)
	}
	say(r)
}

func (s *Server) do(ctx context.Context, q request, progress func(string)) (json.RawMessage, error) {
	verb, known := verbs[q.Verb]
	if !known {
		return nil, errors.New("there is no verb " + q.Verb)
	}
	result, err := verb(ctx, s, q.Args, progress)
	text, bad := json.Marshal(result)
	return text, errors.Join(err, bad)
}
