package pgrepl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// What PostgreSQL 15 writes at the beginning of its shared memory (PGShmemHeader in
// pg_shmem.h) and of the control segment of its dynamic shared memory (dsm.c).
const (
	shmemMagic   = 679834894
	controlMagic = 0x9a503d32
	headerSize   = 56
	controlItems = 16 // offset of the first item, which begins with its handle
	controlItem  = 40 // size
)

// ReleaseMemory gives the shared memory back that a server which was killed has left
// behind. The next start of PostgreSQL in that data directory would do so; where there
// is none, because the directory is deleted or was replaced, the memory stays until the
// machine boots, and after 4096 such servers (kernel.shmmni) none starts any more.
//
// It does nothing where the server was shut down in order, is running, or its memory is
// not that of this directory any more.
func ReleaseMemory(dataDir string) error {
	id, ok := segmentOf(dataDir)
	if !ok {
		return nil
	}
	var d unix.SysvShmDesc
	if _, err := unix.SysvShmCtl(id, unix.IPC_STAT, &d); err != nil || d.Nattch > 0 {
		return ignore(err, unix.EINVAL, unix.EIDRM, unix.EACCES)
	}
	control, ours, err := readSegment(id, dataDir)
	if err != nil || !ours {
		return ignore(err, unix.EINVAL, unix.EIDRM)
	}
	if _, err := unix.SysvShmCtl(id, unix.IPC_RMID, nil); err != nil {
		return ignore(err, unix.EINVAL, unix.EIDRM)
	}
	return removeDynamic(control)
}

func ignore(err error, harmless ...syscall.Errno) error {
	for _, e := range harmless {
		if errors.Is(err, e) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("release shared memory: %w", err)
	}
	return nil
}

// segmentOf reads the id of the shared memory from postmaster.pid, which only a server
// that was killed leaves behind. Its seventh line is the segment's key and id.
func segmentOf(dataDir string) (id int, ok bool) {
	text, err := os.ReadFile(filepath.Join(dataDir, "postmaster.pid"))
	if err != nil {
		return 0, false
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) < 7 {
		return 0, false
	}
	words := strings.Fields(lines[6])
	if len(words) != 2 {
		return 0, false
	}
	id, err = strconv.Atoi(words[1])
	return id, err == nil
}

// readSegment says whether a segment belongs to a data directory, whose inode it
// holds, and returns the handle of its dynamic shared memory; zero is none.
func readSegment(id int, dataDir string) (control uint32, ours bool, err error) {
	memory, err := unix.SysvShmAttach(id, 0, unix.SHM_RDONLY)
	if err != nil {
		return 0, false, err
	}
	defer func() { _ = unix.SysvShmDetach(memory) }()
	var s unix.Stat_t
	if err := unix.Stat(dataDir, &s); err != nil {
		return 0, false, err
	}
	h := memory
	if len(h) < headerSize || binary.NativeEndian.Uint32(h) != shmemMagic ||
		binary.NativeEndian.Uint64(h[40:]) != s.Dev || binary.NativeEndian.Uint64(h[48:]) != s.Ino {
		return 0, false, nil
	}
	return binary.NativeEndian.Uint32(h[24:]), true, nil
}

// removeDynamic deletes a control segment and all those that it lists.
func removeDynamic(control uint32) error {
	if control == 0 {
		return nil
	}
	text, err := os.ReadFile(dynamicFileOf(control))
	if isMissing(err) {
		return nil // dynamic_shared_memory_type is another
	}
	if err != nil {
		return fmt.Errorf("release dynamic shared memory: %w", err)
	}
	files := []string{dynamicFileOf(control)}
	if len(text) >= controlItems && binary.NativeEndian.Uint32(text) == controlMagic {
		n := int(binary.NativeEndian.Uint32(text[4:]))
		for at := controlItems; n > 0 && at+4 <= len(text); at, n = at+controlItem, n-1 {
			files = append(files, dynamicFileOf(binary.NativeEndian.Uint32(text[at:])))
		}
	}
	return removeFiles(files...)
}

func dynamicFileOf(handle uint32) string {
	return filepath.Join("/dev/shm", "PostgreSQL."+strconv.FormatUint(uint64(handle), 10))
}
