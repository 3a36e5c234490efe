package dev

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// PostgresUnit runs PostgreSQL on a dev node.
const PostgresUnit = "postgresql.service"

// postgresDirs returns the data directory and the folder of the configuration,
// as Debian has them.
func postgresDirs(major int) (data, conf string) {
	v := strconv.Itoa(major)
	return filepath.Join("/var/lib/postgresql", v, "main"), filepath.Join("/etc/postgresql", v, "main")
}

// postgresUser is the user that PostgreSQL runs as: it refuses to run as root.
func postgresUser() string {
	if os.Geteuid() == 0 {
		return "postgres"
	}
	if me, err := user.Current(); err == nil {
		return me.Username
	}
	return strconv.Itoa(os.Geteuid())
}

// postgresCredential is that of postgresUser; nil when it is this user.
func postgresCredential() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	who, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("find user postgres: %w; install the package postgresql", err)
	}
	uid, err := strconv.ParseUint(who.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("find user postgres: %w", err)
	}
	gid, err := strconv.ParseUint(who.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("find user postgres: %w", err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

func canEnter(info fs.FileInfo, uid uint32, groups []uint32) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return true
	case stat.Uid == uid:
		return info.Mode()&0o100 != 0
	case slices.Contains(groups, stat.Gid):
		return info.Mode()&0o010 != 0
	}
	return info.Mode()&0o001 != 0
}

// giveToPostgres makes a folder, and all in it, postgresUser's own.
func giveToPostgres(dir string) error {
	cred, err := postgresCredential()
	if err != nil || cred == nil {
		return err
	}
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(cred.Uid), int(cred.Gid))
	})
	if err != nil {
		return fmt.Errorf("give %s to user postgres: %w", dir, err)
	}
	return nil
}

const pgHBA = `# A dev cluster is for its machine alone: everybody on it may come in.
# TYPE  DATABASE     USER      ADDRESS        METHOD
local   all          all                      trust
host    all          all       127.0.0.0/8    trust
local   replication  all                      trust
`

// createPostgres makes an empty PostgreSQL, as pg_createcluster does on Debian:
// the configuration outside the data directory. A data directory that is there is
// complete, because it gets its name last.
func createPostgres(ctx context.Context, spec NodeSpec, major int) error {
	data, conf := postgresDirs(major)
	data, conf = filepath.Join(spec.Root, data), filepath.Join(spec.Root, conf)
	if _, err := os.Stat(data); err == nil {
		return nil
	}
	temp := data + ".initdb"
	if err := os.RemoveAll(temp); err != nil {
		return fmt.Errorf("create database: %w", err)
	}
	for _, dir := range []string{filepath.Dir(data), filepath.Join(conf, "conf.d")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("create database: %w", err)
		}
	}
	home := filepath.Dir(filepath.Dir(data))
	if err := giveToPostgres(home); err != nil {
		return err
	}
	// Not synced: what a crash of this machine does to a dev cluster that is
	// being made does not matter.
	initdb := exec.CommandContext(ctx, filepath.Join(spec.PostgresBin, "initdb"),
		"-D", temp, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
	initdb.Dir = home
	cred, err := postgresCredential()
	if err != nil {
		return err
	}
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Setpgid: true}
	initdb.Cancel = func() error { return syscall.Kill(-initdb.Process.Pid, syscall.SIGKILL) }
	var out bytes.Buffer
	initdb.Stdout, initdb.Stderr = &out, &out
	if err := initdb.Run(); err != nil {
		return fmt.Errorf("create database: initdb: %w: %s", err, strings.TrimSpace(out.String()))
	}
	text := strings.NewReplacer("ROOT", quoteSetting(spec.Root), "DATA", quoteSetting(data), "CONF", quoteSetting(conf), "ADDRESS", spec.Address,
		"PORT", strconv.Itoa(PortPostgres), "MAJOR", strconv.Itoa(major)).Replace(postgresqlConf)
	for name, content := range map[string]string{"postgresql.conf": text, "pg_hba.conf": pgHBA, "pg_ident.conf": "# MAPNAME  SYSTEM-USERNAME  PG-USERNAME\n"} {
		if err := replaceFile(filepath.Join(conf, name), content); err != nil {
			return err
		}
	}
	if err := giveToPostgres(filepath.Dir(filepath.Dir(conf))); err != nil {
		return err
	}
	if err := os.Rename(temp, data); err != nil {
		return fmt.Errorf("create database: %w", err)
	}
	return nil
}

// quoteSetting escapes a path for use between quotes in postgresql.conf.
func quoteSetting(s string) string { return strings.NewReplacer(`\`, `\\`, "'", "''").Replace(s) }

const postgresqlConf = `# As Debian lays it out.
data_directory = 'DATA'
hba_file = 'CONF/pg_hba.conf'
ident_file = 'CONF/pg_ident.conf'
external_pid_file = 'ROOT/run/postgresql/MAJOR-main.pid'
listen_addresses = 'ADDRESS'
port = PORT
unix_socket_directories = 'ROOT/run/postgresql'
max_connections = 100
shared_buffers = 128MB
dynamic_shared_memory_type = posix
log_line_prefix = '%m [%p] %q%u@%d '
timezone = 'Etc/UTC'
log_timezone = 'Etc/UTC'
include_dir = 'conf.d'
`
