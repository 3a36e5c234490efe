package services

import "testing"

func TestFieldName(t *testing.T) {
	for key, want := range map[string]string{
		"epoch": "EPOCH", "node": "NODE", "job_id": "JOB_ID", "took-ms": "TOOK_MS", "1st": "ST",
		"message": "UNDERSTUDY_MESSAGE", "_private": "PRIVATE", "": "UNDERSTUDY_", "änder": "NDER",
	} {
		if got := fieldName(key); got != want {
			t.Errorf("%q: %s, want %s", key, got, want)
		}
	}
}
