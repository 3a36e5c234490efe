package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/understudy-ha/understudy/registry"
	"github.com/understudy-ha/understudy/statefile"
)

// secretFile is where the secret of a token of Consul's is kept. Their own are with
// the certificates, where the daemons may read them and root alone has the operator's.
func (h *Host) secretFile(holder registry.Holder) string {
	if holder == registry.HolderOperator {
		return h.Layout.Operator()
	}
	return filepath.Join(h.Layout.SSL, string(holder)+".token")
}

// Secret reads the secret of a token of this node.
func (h *Host) Secret(holder registry.Holder) (string, error) {
	text, err := os.ReadFile(h.secretFile(holder))
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "", fmt.Errorf("read the token for Consul: %w; run it as root, for instance with sudo", err)
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("read the token for Consul: %w; 'understudy cluster start' and 'join' make it: where it was lost, remove this node, and let it join again", err)
	case err != nil:
		return "", fmt.Errorf("read the token for Consul: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// MakeSecrets returns the secrets of this node's tokens, and makes those that there
// are not yet. They are good for nothing before Consul hears of them.
func (h *Host) MakeSecrets() (registry.Secrets, error) {
	all := registry.Secrets{}
	for _, holder := range registry.Holders() {
		secret, err := h.Secret(holder)
		if errors.Is(err, fs.ErrNotExist) {
			secret = registry.NewSecret()
			err = statefile.WriteText(h.secretFile(holder), []byte(secret+"\n"), 0o600)
		}
		if err != nil {
			return nil, err
		}
		all[holder] = secret
	}
	return all, nil
}

// ForgetSecrets deletes them.
func (h *Host) ForgetSecrets() error {
	for _, holder := range registry.Holders() {
		if err := os.Remove(h.secretFile(holder)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget the token for Consul: %w", err)
		}
	}
	return nil
}
