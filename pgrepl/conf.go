package pgrepl

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

func (s *Server) staticFile() string  { return filepath.Join(s.confDir(), "understudy.conf") }
func (s *Server) dynamicFile() string { return filepath.Join(s.confDir(), "understudy-dynamic.conf") }
func (s *Server) confDir() string     { return filepath.Join(filepath.Dir(s.ConfigFile), "conf.d") }
func (s *Server) own(name string) string {
	return filepath.Join(filepath.Dir(s.ConfigFile), "understudy", name)
}

type setting struct{ name, value string }

// defaults are what an operator may change by Parameters.
var defaults = []setting{
	{"max_wal_senders", "20"},
	{"max_replication_slots", "20"},
	// A standby that was away for longer than this much WAL is cloned; a slot
	// that nobody reads must not fill the disk.
	{"wal_keep_size", "1GB"},
	{"max_slot_wal_keep_size", "4GB"},
	// The pause between two attempts of a standby to find more WAL. A reload
	// ends it at once, so it only matters where a first attempt failed; each
	// attempt writes a line to the log.
	{"wal_retrieve_retry_interval", "200ms"},
	{"wal_receiver_status_interval", "1s"},
	{"wal_receiver_timeout", "10s"},
	{"wal_sender_timeout", "10s"},
	{"synchronous_commit", "on"},
}

// required are what correctness rests on. They may not be set by Parameters.
var required = []setting{
	{"wal_level", "logical"},   // divergence is exported by logical decoding
	{"wal_log_hints", "on"},    // pg_rewind
	{"full_page_writes", "on"}, // pg_rewind
	{"fsync", "on"},
	{"hot_standby", "on"},
	{"track_commit_timestamp", "on"}, // which side was written last
	{"recovery_target_timeline", "latest"},
	{"data_sync_retry", "off"},
	// After the crash of a backend the postmaster would restart by itself as a
	// primary, and every commit that was still waiting for its standbys would
	// become visible unconfirmed. Instead it ends, and boots as a standby.
	{"restart_after_crash", "off"},
	{"ssl", "on"},
}

// reserved are set from Config or while the cluster runs.
var reserved = []string{"port", "unix_socket_directories", "ssl_ca_file", "ssl_cert_file", "ssl_key_file", "ssl_crl_file",
	"hba_file", "ident_file", "data_directory", "config_file",
	"primary_conninfo", "primary_slot_name", "synchronous_standby_names", "promote_trigger_file",
	"recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid", "recovery_min_apply_delay"}

func ownNames() []string {
	names := slices.Clone(reserved)
	for _, r := range required {
		names = append(names, r.name)
	}
	return names
}

// checkParameters refuses the settings that are not the operator's.
func checkParameters(p map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(p)) {
		if slices.Contains(ownNames(), strings.ToLower(name)) {
			return fmt.Errorf("parameter %s is set by understudy and cannot be chosen", name)
		}
		if strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789_.") != "" || name == "" {
			return fmt.Errorf("parameter %q is not a name of a PostgreSQL setting", name)
		}
		if strings.ContainsAny(p[name], "\n\r\x00") {
			return fmt.Errorf("parameter %s: the value has a line break", name)
		}
	}
	if v, ok := p["synchronous_commit"]; ok && v != "on" && v != "remote_apply" {
		return fmt.Errorf("parameter synchronous_commit: %q loses acknowledged commits; use on or remote_apply", v)
	}
	return nil
}

// staticConf is conf.d/understudy.conf. raised are settings that a standby must
// not have lower than its upstream; sockets are the folders in which the host's
// own programs look for the server.
func (s *Server) staticConf(sockets string, raised []setting) string {
	all := []setting{
		{"listen_addresses", listenAddresses(s.Address)},
		{"port", strconv.Itoa(s.Port)},
		{"unix_socket_directories", socketDirs(s.SocketDir, sockets)},
		{"hba_file", s.own("pg_hba.conf")},
		{"ident_file", s.own("pg_ident.conf")},
		{"ssl_ca_file", s.own("ca.crt")},
		{"ssl_cert_file", s.own("node.crt")},
		{"ssl_key_file", s.own("node.key")},
	}
	all = slices.Concat(all, required, defaults, raised)
	for _, name := range slices.Sorted(maps.Keys(s.Parameters)) {
		all = append(all, setting{strings.ToLower(name), s.Parameters[name]})
	}
	var b strings.Builder
	b.WriteString("# Written by understudy; changes are lost. Use postgres.parameters in understudy.yaml.\n")
	for i, set := range all {
		overruled := slices.ContainsFunc(all[i+1:], func(o setting) bool { return o.name == set.name })
		if !overruled {
			fmt.Fprintf(&b, "%s = %s\n", set.name, confQuote(set.value))
		}
	}
	return b.String()
}

// socketDirs puts our own socket beside those there were.
func socketDirs(own, before string) string {
	dirs := []string{own}
	for d := range strings.SplitSeq(before, ",") {
		if d = strings.TrimSpace(d); d != "" && !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return strings.Join(dirs, ", ")
}

// listenAddresses are the node's address and loopback. Nodes that share a
// machine have loopback addresses of their own and the same port, so there only
// that one.
func listenAddresses(address string) string {
	if a, err := netip.ParseAddr(address); err == nil && a.IsLoopback() {
		return address
	}
	return "127.0.0.1," + address
}

// dynamic is conf.d/understudy-dynamic.conf: what changes with the roles.
type dynamic struct {
	conninfo   string
	slot       string
	standbys   string // synchronous_standby_names
	generation int    // counts the changes: whoever shows it has read the file
}

const generationSetting = "understudy.generation"

func (d dynamic) text() string {
	return fmt.Sprintf("# Written by understudy; changes are lost.\nprimary_conninfo = %s\nprimary_slot_name = %s\n"+
		"synchronous_standby_names = %s\n%s = '%d'\n",
		confQuote(d.conninfo), confQuote(d.slot), confQuote(d.standbys), generationSetting, d.generation)
}

// parseDynamic reads what text wrote. A file that is empty, because the machine
// lost its power while it was written, is one that replicates from nobody.
func parseDynamic(text string) dynamic {
	d := dynamic{standbys: standbyNames(lockedQuorum)}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " = '")
		if !ok {
			continue
		}
		value = strings.ReplaceAll(strings.TrimSuffix(value, "'"), "''", "'")
		switch name {
		case "primary_conninfo":
			d.conninfo = value
		case "primary_slot_name":
			d.slot = value
		case "synchronous_standby_names":
			d.standbys = value
		case generationSetting:
			d.generation, _ = strconv.Atoi(value)
		}
	}
	return d
}

// conninfo is how this node connects to another as ReplicaRole. The
// certificates are read by the server and by its tools, both as SystemUser.
func (s *Server) conninfo(up Upstream, more ...setting) string {
	all := append([]setting{
		{"host", up.Address},
		{"port", strconv.Itoa(up.Port)},
		{"user", ReplicaRole},
		{"application_name", s.NodeName},
		{"sslmode", "verify-full"},
		{"sslrootcert", s.own("ca.crt")},
		{"sslcert", s.own("node.crt")},
		{"sslkey", s.own("node.key")},
		{"gssencmode", "disable"},
		{"connect_timeout", "2"},
		{"keepalives", "1"},
		{"keepalives_idle", "2"},
		{"keepalives_interval", "1"},
		{"keepalives_count", "3"},
		{"tcp_user_timeout", "5000"},
	}, more...)
	words := make([]string, len(all))
	for i, set := range all {
		words[i] = set.name + "=" + conninfoQuote(set.value)
	}
	return strings.Join(words, " ")
}

func conninfoQuote(v string) string {
	if v != "" && !strings.ContainsAny(v, ` '\`) {
		return v
	}
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(v) + "'"
}

// upstreamOf finds the address in a conninfo that conninfo wrote; its first two
// words are host and port.
func upstreamOf(conninfo string) (address string, port int) {
	for word := range strings.FieldsSeq(conninfo) {
		if v, ok := strings.CutPrefix(word, "host="); ok {
			address = v
		}
		if v, ok := strings.CutPrefix(word, "port="); ok {
			port, _ = strconv.Atoi(v)
		}
	}
	return address, port
}

func (u Upstream) String() string {
	return fmt.Sprintf("%s (%s)", u.Name, net.JoinHostPort(u.Address, strconv.Itoa(u.Port)))
}
