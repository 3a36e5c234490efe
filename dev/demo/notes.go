package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"time"
)

// notes is a client of the example manager.
type notes struct{ client http.Client }

// requestWithin bounds one request.
const requestWithin = 3 * time.Second

func newNotes() *notes { return &notes{http.Client{Timeout: requestWithin}} }

// add writes a note with an attachment and returns its id.
func (n *notes) add(ctx context.Context, url, text, name string, attachment []byte) (int64, error) {
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	if err := form.WriteField("text", text); err != nil {
		return 0, fmt.Errorf("write a note: %w", err)
	}
	part, err := form.CreateFormFile("attachment", name)
	if err != nil {
		return 0, fmt.Errorf("write a note: %w", err)
	}
	if _, err := part.Write(attachment); err != nil {
		return 0, fmt.Errorf("write a note: %w", err)
	}
	if err := form.Close(); err != nil {
		return 0, fmt.Errorf("write a note: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/notes", &body)
	if err != nil {
		return 0, fmt.Errorf("write a note: %w", err)
	}
	request.Header.Set("Content-Type", form.FormDataContentType())
	answer, err := n.do(request, http.StatusCreated)
	if err != nil {
		return 0, fmt.Errorf("write a note: %w", err)
	}
	var made struct {
		ID int64 `json:"id"`
	}
	if err := json.Unmarshal(answer, &made); err != nil {
		return 0, fmt.Errorf("write a note: %w", err)
	}
	return made.ID, nil
}

// check says whether a node shows the note and its attachment as they were sent.
func (n *notes) check(ctx context.Context, url string, id int64, text string, attachment []byte) error {
	list, err := n.get(ctx, url+"/notes")
	if err != nil {
		return fmt.Errorf("read notes: %w", err)
	}
	var there []struct {
		ID   int64  `json:"id"`
		Text string `json:"text"`
	}
	if err := json.Unmarshal(list, &there); err != nil {
		return fmt.Errorf("read notes: %w", err)
	}
	found := false
	for _, note := range there {
		found = found || note.ID == id && note.Text == text
	}
	if !found {
		return fmt.Errorf("read notes: note %d is not among the %d that are there", id, len(there))
	}
	got, err := n.get(ctx, fmt.Sprintf("%s/notes/%d/attachment", url, id))
	if err != nil {
		return fmt.Errorf("read the attachment: %w", err)
	}
	if !bytes.Equal(got, attachment) {
		return fmt.Errorf("read the attachment: its %d bytes are not the %d that were sent", len(got), len(attachment))
	}
	return nil
}

func (n *notes) get(ctx context.Context, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return n.do(request, http.StatusOK)
}

func (n *notes) do(request *http.Request, want int) ([]byte, error) {
	response, err := n.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != want {
		return nil, fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}

// retry repeats what may have to wait for something, until it succeeds or ctx
// ends; then the error is that of the last attempt.
func retry(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
