package lab

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/packaging"
)

// Cache is where the image and the disks of machines are kept.
const Cache = "/var/tmp/understudy-lab"

// Admin is the user of a machine who may use sudo without a password, as the
// documentation supposes one.
const Admin = "admin"

// imageWithin bounds the making of the image, most of which is downloads.
const imageWithin = 10 * time.Minute

// imageKept is how long an image of another version is kept after its last use.
const imageKept = 7 * 24 * time.Hour

// included are the packages of a Debian 12 with systemd, and what the README asks
// for beside Go.
const included = "systemd,systemd-sysv,dbus,sudo,adduser,git,make"

// recipe is what turns debootstrap's tree into the image. It runs inside.
//
//go:embed recipe.sh
var recipe string

// Image returns the folder of the machines' common root, and makes it first if
// there is none of this version: a Debian 12 on which packaging/setup has run, which
// needs the network. Several processes may ask for it at once. Until free is called
// nobody deletes it.
func Image(ctx context.Context, log *slog.Logger) (dir string, free func(), err error) {
	if err := os.MkdirAll(Cache, 0o755); err != nil {
		return "", nil, fmt.Errorf("make image: %w", err)
	}
	done, err := locked(ctx, filepath.Join(Cache, "lock"))
	if err != nil {
		return "", nil, fmt.Errorf("make image: %w", err)
	}
	defer done()
	dir = filepath.Join(Cache, "image-"+version())
	if _, err := os.Stat(dir); err != nil {
		ctx, cancel := context.WithTimeout(ctx, imageWithin)
		defer cancel()
		began := time.Now()
		log.Info("making the image, once", "dir", dir)
		if err := errors.Join(sweep(ctx, "image-*", imageKept), os.RemoveAll(dir+".new")); err != nil {
			return "", nil, fmt.Errorf("make image: %w", err)
		}
		if err := makeImage(ctx, dir+".new"); err != nil {
			return "", nil, fmt.Errorf("make image: %w", err)
		}
		if err := os.Rename(dir+".new", dir); err != nil {
			return "", nil, fmt.Errorf("make image: %w", err)
		}
		log.Info("made the image", "seconds", int(time.Since(began).Seconds()))
	}
	if free, err = inUse(dir); err != nil {
		return "", nil, fmt.Errorf("make image: %w", err)
	}
	now := time.Now()
	return dir, free, os.Chtimes(dir, now, now)
}

// version changes with everything that the image is made of.
func version() string {
	sum := sha256.Sum256([]byte(included + "\x00" + recipe + "\x00" + packaging.Setup))
	return hex.EncodeToString(sum[:6])
}

func makeImage(ctx context.Context, dir string) error {
	if _, err := run(ctx, "debootstrap", "debootstrap", "--variant=minbase", "--include="+included, "bookworm", dir); err != nil {
		return tail(err)
	}
	for name, text := range map[string]string{"packaging/setup": packaging.Setup, "recipe.sh": recipe} {
		file := filepath.Join(dir, "root/lab", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			return err
		}
	}
	// Names are looked up, and packages fetched, as this host does.
	if text, err := os.ReadFile("/etc/resolv.conf"); err == nil {
		if err := os.WriteFile(filepath.Join(dir, "etc/resolv.conf"), text, 0o644); err != nil {
			return err
		}
	}
	_, err := run(ctx, "set up", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--root="+dir, "--wd=/root/lab",
		"/bin/bash", "recipe.sh", Admin)
	return tail(err)
}

// tail shortens the error of a command that has said a lot.
func tail(err error) error {
	if err == nil {
		return nil
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) < 20 {
		return err
	}
	return errors.New(lines[0] + "\n...\n" + strings.Join(lines[len(lines)-15:], "\n"))
}
