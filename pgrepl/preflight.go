package pgrepl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/understudy-ha/understudy/pgrepl/internal/command"
)

// MinMajor is the oldest version of PostgreSQL that is supported: the first whose
// client library checks an IP address in a certificate, and whose pg_rewind
// takes a configuration file outside the data directory.
const MinMajor = 15

// Major returns the major version of the server's binaries.
func (s *Server) Major(ctx context.Context) (int, error) {
	out, err := s.run.Run(ctx, command.Op{Label: "ask for the version of postgresql", Argv: []string{s.bin("postgres"), "--version"}})
	if err != nil {
		return 0, err
	}
	return parseMajor(out)
}

// parseMajor reads "postgres (PostgreSQL) 15.18 (Debian ...)".
func parseMajor(out string) (int, error) {
	_, version, _ := strings.Cut(out, ") ")
	digits := strings.IndexFunc(version+" ", func(r rune) bool { return r < '0' || r > '9' })
	n, err := strconv.Atoi(version[:max(digits, 0)])
	if err != nil {
		return 0, fmt.Errorf("ask for the version of postgresql: unexpected answer %q", strings.TrimSpace(out))
	}
	return n, nil
}

// Preflight returns every precondition that is not met; none is good. It neither
// needs the server nor Prepare.
func (s *Server) Preflight(ctx context.Context) []Problem {
	problems := s.binaryProblems(ctx)
	if len(problems) > 0 {
		return problems
	}
	if problems = s.folderProblems(); len(problems) > 0 {
		return problems
	}
	return s.settingProblems(ctx)
}

func (s *Server) binaryProblems(ctx context.Context) (problems []Problem) {
	for _, name := range []string{"postgres", "pg_basebackup", "pg_rewind", "pg_controldata", "pg_waldump", "psql"} {
		if info, err := os.Stat(s.bin(name)); err != nil || info.Mode()&0o111 == 0 {
			problems = append(problems, Problem{s.bin(name) + " is missing",
				fmt.Sprintf("install PostgreSQL %d or later with its client programs, or correct postgres.bin_dir", MinMajor)})
		}
	}
	if problems != nil {
		return problems
	}
	switch major, err := s.Major(ctx); {
	case err != nil:
		problems = append(problems, Problem{err.Error(), "see whether the binaries in postgres.bin_dir run"})
	case major < MinMajor:
		problems = append(problems, Problem{fmt.Sprintf("PostgreSQL %d is too old", major), fmt.Sprintf("upgrade to %d or later", MinMajor)})
	}
	return problems
}

func (s *Server) folderProblems() (problems []Problem) {
	add := func(what, remedy string) { problems = append(problems, Problem{what, remedy}) }
	info, err := os.Lstat(s.DataDir)
	switch {
	case err != nil:
		add("the data directory "+s.DataDir+" cannot be read", "create it with initdb (on Debian: pg_createcluster), or correct postgres.data_dir")
	case info.Mode()&os.ModeSymlink != 0:
		add("the data directory "+s.DataDir+" is a symbolic link", "set postgres.data_dir to the directory itself: a clone is made beside it and swapped in")
	case isMountPoint(s.DataDir):
		add("the data directory "+s.DataDir+" is a mount point", "use a folder inside of the mount: a clone is made beside it and swapped in")
	case !exists(filepath.Join(s.DataDir, "PG_VERSION")):
		add("the data directory "+s.DataDir+" is not initialised", "create it with initdb (on Debian: pg_createcluster)")
	default:
		problems = append(problems, s.ownerProblems(info)...)
	}
	if !exists(s.ConfigFile) {
		add(s.ConfigFile+" is missing", "correct postgres.config_file")
	} else if strings.HasPrefix(s.ConfigFile, s.DataDir+"/") {
		add(s.ConfigFile+" lies inside of the data directory", "move it out, as Debian has it: a clone and a rewind would replace it")
	}
	if info, err := os.Stat(s.confDir()); err != nil || !info.IsDir() {
		add("the folder "+s.confDir()+" is missing", "make it, and put the line include_dir = 'conf.d' into "+s.ConfigFile)
	}
	if n := len(filepath.Join(s.SocketDir, ".s.PGSQL.65535")); n > maxSocketPath {
		add("the path of the socket folder "+s.SocketDir+" is too long", fmt.Sprintf("use one of at most %d characters", maxSocketPath-len("/.s.PGSQL.65535")))
	}
	return problems
}

// ownerProblems are those for which PostgreSQL would not start. It looks no deeper than
// into the data directory itself, where the first file of another user tells enough.
func (s *Server) ownerProblems(dir os.FileInfo) (problems []Problem) {
	others := func(file string, info os.FileInfo) bool {
		owner := int(info.Sys().(*syscall.Stat_t).Uid)
		if owner == s.run.UID {
			return false
		}
		problems = append(problems, Problem{fmt.Sprintf("%s belongs to %s and not to %s, as which PostgreSQL runs", file, userName(owner), s.SystemUser),
			fmt.Sprintf("'chown -R %s: %s', or correct postgres.user", s.SystemUser, s.DataDir)})
		return true
	}
	if others(s.DataDir, dir) {
		return problems
	}
	if mode := dir.Mode().Perm(); mode != 0o700 && mode != 0o750 {
		problems = append(problems, Problem{fmt.Sprintf("the data directory %s has the mode %#o, with which PostgreSQL does not start", s.DataDir, mode),
			"'chmod 0700 " + s.DataDir + "'"})
	}
	entries, err := os.ReadDir(s.DataDir)
	if err != nil {
		return append(problems, Problem{err.Error(), "run the command as root"})
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && others(filepath.Join(s.DataDir, e.Name()), info) {
			break
		}
	}
	return problems
}

// userName is how ls names a user.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

// maxSocketPath is what the kernel takes as the path of a Unix socket.
const maxSocketPath = 107

func isMountPoint(dir string) bool {
	a, err1 := os.Stat(dir)
	b, err2 := os.Stat(filepath.Dir(dir))
	if err1 != nil || err2 != nil {
		return false
	}
	return a.Sys().(*syscall.Stat_t).Dev != b.Sys().(*syscall.Stat_t).Dev
}

func (s *Server) settingProblems(ctx context.Context) (problems []Problem) {
	add := func(what, remedy string) { problems = append(problems, Problem{what, remedy}) }
	version, err := os.ReadFile(filepath.Join(s.DataDir, "PG_VERSION"))
	major, err2 := s.Major(ctx)
	if err == nil && err2 == nil && strings.TrimSpace(string(version)) != strconv.Itoa(major) {
		add(fmt.Sprintf("the data directory is of PostgreSQL %s and the binaries are of %d", strings.TrimSpace(string(version)), major),
			"correct postgres.bin_dir, or upgrade the data directory")
	}
	if err := s.checkOverridden(); err != nil {
		add(err.Error(), "ALTER SYSTEM RESET that setting")
	}
	if exists(rewindMark(s.DataDir)) {
		add(ErrRewinding.Error(), "join again, which clones it")
	}
	if links, err := os.ReadDir(filepath.Join(s.DataDir, "pg_tblspc")); err == nil && len(links) > 0 {
		add("the database has tablespaces outside of its data directory", "move their tables into pg_default: a clone beside the data directory cannot hold them")
	}
	dir, err := s.configured(ctx, "data_directory")
	if err != nil {
		add(err.Error(), "correct "+s.ConfigFile)
	} else if dir != s.DataDir {
		add(fmt.Sprintf("%s is about the data directory %s and not %s", s.ConfigFile, dir, s.DataDir), "correct postgres.config_file or postgres.data_dir")
	}
	return problems
}

// InUse says what there is in the database beside an empty installation: the
// first thing found, or nothing. The error wraps ErrNotRunning when the server
// has to be started first. It does not need Prepare.
func (s *Server) InUse(ctx context.Context) (what string, err error) {
	err = s.row(ctx, inUseSQL, nil, &what)
	switch {
	case err == pgx.ErrNoRows:
		return "", nil
	case err == nil:
		return what, nil
	case s.postmaster() == 0:
		return "", fmt.Errorf("look for data in the database: %w", ErrNotRunning)
	}
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	for {
		what, err = s.inUseAsOwner(ctx)
		var failed *command.Error
		if !errors.As(err, &failed) || !startingUp.MatchString(failed.Output) {
			return what, err
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// startWithin is how long a server that is starting is waited for.
const startWithin = 30 * time.Second

// startingUp is what psql says of such a server, which at first has no socket. In another language than English
// it is not recognized, and not waited for.
var startingUp = regexp.MustCompile(`the database system is (starting up|not yet accepting connections)|socket .* failed: No such file or directory`)

// inUseAsOwner asks as the system user that owns the database, whom it lets in
// as it was installed, at the socket of the original configuration.
func (s *Server) inUseAsOwner(ctx context.Context) (string, error) {
	dirs, err := s.configured(ctx, "unix_socket_directories")
	if err != nil {
		return "", err
	}
	port, err := s.configured(ctx, "port")
	if err != nil {
		return "", err
	}
	dir, _, _ := strings.Cut(dirs, ",")
	out, err := s.run.Run(ctx, command.Op{
		Label: "look for data in the database",
		Argv: []string{s.bin("psql"), "-XAtw", "-v", "ON_ERROR_STOP=1", "-h", strings.TrimSpace(dir), "-p", port,
			"-U", s.Superuser, "-d", "postgres", "-c", inUseSQL},
	})
	return strings.TrimSpace(out), err
}

const inUseSQL = `select what from (
	select 1 as n, 'database ' || datname as what from pg_database where datname not in ('postgres', 'template0', 'template1')
	union all
	select 2, 'table ' || n.nspname || '.' || c.relname || ' in database postgres' from pg_class c join pg_namespace n on n.oid = c.relnamespace
		where n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast') and n.nspname !~ '^pg_(toast_)?temp_'
		and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f') and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')
	union all
	select 3, 'role ' || rolname from pg_roles where oid >= 16384 and rolname not in ('` + AdminRole + `', '` + ReplicaRole + `')
	union all
	select 4, 'standby of another server' where pg_is_in_recovery() and current_setting('primary_conninfo') <> ''
	) found order by n, what limit 1`
