package filesync

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/syncthing/syncthing/lib/fs"
)

// A keeper is the file system through which Syncthing sees one folder. Whatever
// Syncthing removes or replaces there is first moved to a place outside the
// tree, and a failure to do so fails the removal. It stands in for Syncthing's
// versioners, which give two versions of one second the same name and let go of
// symbolic links and directories.
//
// A file that had changed on this node itself is kept under local/ for ever. A
// version that a newer one of the active replaced is kept under replaced/ until
// it is thinned out.
type keeper struct {
	root     string // the folder
	versions string // where it keeps
	meta     fs.Filesystem

	// local says whether the named entry had changed on this node itself.
	local func(name string) bool

	grew atomic.Bool // something was kept since thinOut looked last

	mu sync.Mutex // held from choosing a name until it is taken
}

// The two halves of the kept versions of a folder.
const (
	keptLocal    = "local"
	keptReplaced = "replaced"
)

// stamp is the time in the name of a kept version, in UTC.
const stamp = "20060102-150405.000000000"

const ignoreFile = ".stignore"

// register makes the file system known to Syncthing and returns its type.
func (k *keeper) register(id string) fs.FilesystemType {
	kind := fs.FilesystemType("kept:" + id + ":" + k.root)
	fs.RegisterFilesystemType(kind, func(root string, opts ...fs.Option) (fs.Filesystem, error) {
		view := &keeperView{keeper: k, kind: kind}
		view.Filesystem = fs.NewFilesystem(fs.FilesystemTypeBasic, root, opts...)
		return view, nil
	})
	return kind
}

// keeperView is a keeper under the options that Syncthing asked for.
type keeperView struct {
	*keeper
	fs.Filesystem
	kind fs.FilesystemType
}

// own says that an entry is Syncthing's, not the manager's.
func own(name string) bool { return fs.IsTemporary(name) || fs.IsInternal(filepath.Clean(name)) }

// Type keeps this view apart from the plain file system.
func (v *keeperView) Type() fs.FilesystemType { return v.kind }

// Open serves the ignore patterns from the configuration, not from the tree.
func (v *keeperView) Open(name string) (fs.File, error) {
	if name == ignoreFile {
		return v.meta.Open(name)
	}
	return v.Filesystem.Open(name)
}

// Stat goes with Open.
func (v *keeperView) Stat(name string) (fs.FileInfo, error) {
	if name == ignoreFile {
		return v.meta.Stat(name)
	}
	return v.Filesystem.Stat(name)
}

// MkdirAll does not make the folder itself: where it is missing, its file
// system may not be mounted.
func (v *keeperView) MkdirAll(name string, perm fs.FileMode) error {
	if filepath.Clean(name) == "." {
		return fmt.Errorf("make %s: %w", v.root, fs.ErrNotExist)
	}
	return v.Filesystem.MkdirAll(name, perm)
}

// Remove keeps the entry. A directory that is not empty is refused, as always.
func (v *keeperView) Remove(name string) error {
	info, err := v.Lstat(name)
	if err != nil || own(name) {
		return v.Filesystem.Remove(name)
	}
	if info.IsDir() {
		if names, err := v.DirNames(name); err != nil || len(names) > 0 {
			return v.Filesystem.Remove(name)
		}
	}
	return v.keep(name)
}

// RemoveAll keeps the whole tree.
func (v *keeperView) RemoveAll(name string) error {
	if _, err := v.Lstat(name); err != nil || own(name) {
		return v.Filesystem.RemoveAll(name)
	}
	return v.keep(name)
}

// Rename keeps what lies at the new name. A live file that becomes a temporary
// one, which is how Syncthing begins to follow a rename, is copied and kept.
func (v *keeperView) Rename(from, to string) error {
	if there, err := v.Lstat(to); err == nil && !own(to) && from != to && !there.IsDir() {
		if err := v.keep(to); err != nil {
			return err
		}
	}
	if fs.IsTemporary(to) && !own(from) {
		if err := copyFile(filepath.Join(v.root, from), filepath.Join(v.root, to)); err != nil {
			return err
		}
		return v.keep(from)
	}
	return v.Filesystem.Rename(from, to)
}

// keep moves an entry out of the tree, under a name that no other has.
func (k *keeper) keep(name string) error {
	half := keptReplaced
	if k.local(name) {
		half = keptLocal
	}
	from := filepath.Join(k.root, name)
	dir := filepath.Join(k.versions, half, filepath.Dir(name))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keep %s: %w", from, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	to := freeName(dir, filepath.Base(name), time.Now())
	err := os.Rename(from, to)
	if errors.Is(err, syscall.EXDEV) {
		err = moveAcross(from, to)
	}
	if err != nil {
		return fmt.Errorf("keep %s: %w", from, err)
	}
	k.grew.Store(true)
	return nil
}

// freeName is where a version of base is kept: base~time, and a nanosecond
// later while that is taken. A name that would be too long loses its middle.
func freeName(dir, base string, now time.Time) string {
	const limit = 255 - 1 - len(stamp)
	if len(base) > limit {
		base = base[:limit-60] + "~~" + base[len(base)-50:]
	}
	for ; ; now = now.Add(1) {
		to := filepath.Join(dir, base+"~"+now.UTC().Format(stamp))
		if _, err := os.Lstat(to); errors.Is(err, os.ErrNotExist) {
			return to
		}
	}
}

// keptAt takes the name of a kept version apart.
func keptAt(file string) (base string, at time.Time, ok bool) {
	i := strings.LastIndexByte(file, '~')
	if i < 0 {
		return "", time.Time{}, false
	}
	at, err := time.Parse(stamp, file[i+1:])
	return file[:i], at, err == nil
}

// moveAcross moves one entry to another file system. A tree is refused: it is
// moved entry by entry.
func moveAcross(from, to string) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	switch {
	case info.IsDir():
		if err := os.Mkdir(to, info.Mode().Perm()); err != nil {
			return err
		}
	case info.Mode()&os.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		if err := os.Symlink(target, to); err != nil {
			return err
		}
	default:
		if err := copyFile(from, to); err != nil {
			return err
		}
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		_ = os.Lchown(to, int(st.Uid), int(st.Gid)) // only root can; the content is what must not be lost
	}
	return os.Remove(from)
}

// copyFile writes a durable copy with the same mode and time. A source that
// changes meanwhile is an error, and leaves no copy.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	before, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, before.Mode().Perm())
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			out.Close()
			os.Remove(to)
		}
	}()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	if err := errors.Join(out.Chmod(before.Mode().Perm()), out.Sync(), out.Close()); err != nil {
		return err
	}
	after, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) {
		return fmt.Errorf("%s changed while it was copied", from)
	}
	return os.Chtimes(to, before.ModTime(), before.ModTime())
}
