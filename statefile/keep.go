package statefile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// spareSize is what a kept file and its spare take at least: a block of most
// file systems. They grow by blocks.
const spareSize = 4096

// Keep is Write for a value that must not be lost on a full disk. Beside the file
// it keeps a spare of the same size: the new value is written over the spare,
// synced, and the two are exchanged. So once it has succeeded, the next Keep takes
// no new space, unless the value has grown by a block.
func Keep(file string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	// White space after it is none of JSON's business.
	pad := spareSize - len(text)%spareSize
	text = append(text, bytes.Repeat([]byte("\n"), pad)...)
	spare := file + ".spare"
	if err := exchange(file, spare, text); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := WriteText(file, text, 0o600); err != nil {
		return err
	}
	_ = WriteText(spare, text, 0o600) // the value is safe; the next Keep tries again
	return nil
}

var errNoSpare = errors.New("no spare of that size")

// exchange writes text over the spare and gives it the file's name.
func exchange(file, spare string, text []byte) error {
	f, err := os.OpenFile(spare, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() != int64(len(text)) {
		return errors.Join(errNoSpare, err)
	}
	if _, err := f.WriteAt(text, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, spare, unix.AT_FDCWD, file, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
