package certs

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
)

// ErrMistyped: a text is no join token, or was copied with a mistake. A token
// that was copied well and belongs to another cluster decodes without an error.
var ErrMistyped = errors.New("not a join token, or not copied in full: make sure that it is the whole word that 'understudy cluster token create' printed")

// A join token is, in base32: one byte for the version, the id, the secret, the
// CA's pin and a CRC-32 of all that.
const (
	tokenVersion = 1
	tokenID      = 8
	tokenSecret  = 16
	tokenPin     = 32
	tokenLen     = 1 + tokenID + tokenSecret + tokenPin + 4
)

var tokenText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewSecret makes the id and the secret of a join token, both in hex. The secret
// has 128 bits.
func NewSecret() (id, secret string) {
	var b [tokenID + tokenSecret]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:tokenID]), hex.EncodeToString(b[tokenID:])
}

// EncodeToken makes the one word that an operator carries to the joining node,
// of what NewSecret and Dir.Pin returned.
func EncodeToken(id, secret, pin string) (string, error) {
	raw := []byte{tokenVersion}
	for _, part := range []struct {
		what, hex string
		size      int
	}{{"id", id, tokenID}, {"secret", secret, tokenSecret}, {"pin", strings.TrimPrefix(pin, pinPrefix), tokenPin}} {
		b, err := hex.DecodeString(part.hex)
		if err != nil || len(b) != part.size {
			return "", fmt.Errorf("encode token: the %s is not %d bytes in hex", part.what, part.size)
		}
		raw = append(raw, b...)
	}
	raw = binary.BigEndian.AppendUint32(raw, crc32.ChecksumIEEE(raw))
	return tokenText.EncodeToString(raw), nil
}

// DecodeToken takes a join token apart. White space and capitals do not
// matter. The error wraps ErrMistyped.
func DecodeToken(text string) (id, secret, pin string, err error) {
	word := strings.ToLower(strings.Join(strings.Fields(text), "")) // a terminal may have wrapped it
	raw, err := tokenText.DecodeString(word)
	if err != nil || len(raw) != tokenLen || tokenText.EncodeToString(raw) != word {
		return "", "", "", fmt.Errorf("join token: %w", ErrMistyped)
	}
	body := raw[:tokenLen-4]
	if !bytes.Equal(raw[tokenLen-4:], binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(body))) {
		return "", "", "", fmt.Errorf("join token: %w", ErrMistyped)
	}
	if body[0] != tokenVersion {
		return "", "", "", fmt.Errorf("join token: it has version %d, this program reads version %d: install the cluster's version here", body[0], tokenVersion)
	}
	body = body[1:]
	return hex.EncodeToString(body[:tokenID]),
		hex.EncodeToString(body[tokenID : tokenID+tokenSecret]),
		pinPrefix + hex.EncodeToString(body[tokenID+tokenSecret:]), nil
}

// HashSecret is what the registry keeps of a secret: its SHA-256 in hex. A plain
// hash is enough for 128 random bits.
func HashSecret(secret string) string { return hexSum([]byte(secret)) }

// SecretMatches says, in constant time, whether hash is that of secret.
func SecretMatches(hash, secret string) bool {
	return subtle.ConstantTimeCompare([]byte(hash), []byte(HashSecret(secret))) == 1
}
