package certs

import (
	"errors"
	"strings"
	"testing"
)

func TestTokens(t *testing.T) {
	id, secret := NewSecret()
	pin := "sha256:" + strings.Repeat("5a", 32)
	word, err := EncodeToken(id, secret, pin)
	check(t, err)
	for _, text := range []string{word, "  " + word + "\n", strings.ToUpper(word), word[:40] + "\n" + word[40:]} {
		gotID, gotSecret, gotPin, err := DecodeToken(text)
		if err != nil || gotID != id || gotSecret != secret || gotPin != pin {
			t.Errorf("%q: %s %s %s %v", text, gotID, gotSecret, gotPin, err)
		}
	}

	// Every mistake in one character, every cut and every swap is noticed.
	broken := []string{"", "hello", word + "a", word + word}
	for i := range word {
		other := byte('a')
		if word[i] == other {
			other = 'b'
		}
		broken = append(broken, word[:i], word[:i]+string(other)+word[i+1:], word[:i]+word[i+1:])
		if i > 0 && word[i] != word[i-1] {
			broken = append(broken, word[:i-1]+string(word[i])+string(word[i-1])+word[i+1:])
		}
	}
	for _, text := range broken {
		if _, _, _, err := DecodeToken(text); !errors.Is(err, ErrMistyped) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := EncodeToken("x", secret, pin); err == nil {
		t.Error("a bad id was encoded")
	}
}

func TestSecrets(t *testing.T) {
	_, a := NewSecret()
	_, b := NewSecret()
	if a == b || len(a) != 32 {
		t.Errorf("secrets %q and %q", a, b)
	}
	if !SecretMatches(HashSecret(a), a) || SecretMatches(HashSecret(a), b) || SecretMatches("", "") {
		t.Error("secrets are not told apart")
	}
}
