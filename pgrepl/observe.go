package pgrepl

import (
	"context"
	"strings"
	"time"

	"github.com/understudy-ha/understudy/cluster"
)

// Observe looks at the server. It takes one round trip on a primary and two on a
// standby, over sessions that are kept. It never fails: what could not be seen is
// unknown, and Problem says why. A server that hangs is waited for as long as ctx
// lasts, so give it a deadline.
func (s *Server) Observe(ctx context.Context) Observation {
	o, err := s.observe(ctx)
	if err != nil {
		// Half an answer is none: the server may have changed in between.
		o = Observation{State: stateOf(err), Problem: err.Error()}
	} else {
		o.State = StateUp
	}
	if open, err := s.gateFile(); err == nil {
		o.Gate = cluster.TriOf(open)
	}
	return o
}

// The end of WAL is looked at last: a standby that holds more than that has forked.
const observeSQL = `select r, current_setting('transaction_read_only') = 'on',
	(select system_identifier::text from pg_control_system()),
	case when r then '' else substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8) end,
	case when r then coalesce(pg_last_wal_replay_lsn()::text, '') else '' end,
	current_setting('synchronous_standby_names'), current_setting('primary_conninfo'),
	coalesce(w.status, ''), w.last_msg_receipt_time, w.last_msg_send_time, coalesce(w.latest_end_lsn::text, ''),
	(select count(*) ` + clients + `),
	(select coalesce(array_agg(concat_ws(' ', case when sync_priority > 0 then 'sync' else 'async' end, coalesce(state, 'startup'),
		coalesce(flush_lsn, '0/0'), coalesce(replay_lsn, '0/0'), coalesce(host(client_addr), 'local'), application_name)
		order by application_name), '{}') from pg_stat_replication where usename = '` + ReplicaRole + `'),
	case when r then '' else pg_current_wal_flush_lsn()::text end
	from (select pg_is_in_recovery()) t(r) left join pg_stat_wal_receiver w on true`

func (s *Server) observe(ctx context.Context) (Observation, error) {
	var o Observation
	var standby, readOnly bool
	var timeline, flushed, replayed, names, conninfo, upstreamEnd string
	var receivedAt, sentAt *time.Time
	var replicas []string
	err := s.row(ctx, observeSQL, nil, &standby, &readOnly, &o.SystemID, &timeline, &replayed, &names, &conninfo,
		&o.Receiver, &receivedAt, &sentAt, &upstreamEnd, &o.Clients, &replicas, &flushed)
	if err != nil {
		return o, err
	}
	o.Primary, o.ReadOnly = cluster.TriOf(!standby), cluster.TriOf(readOnly)
	o.Upstream, o.UpstreamPort = upstreamOf(conninfo)
	if receivedAt != nil {
		o.ReceivedAt = *receivedAt
	}
	if receivedAt != nil && sentAt != nil {
		ahead := sentAt.Sub(*receivedAt)
		o.Ahead = &ahead
	}
	if q, ok := parseStandbyNames(names); ok {
		o.Quorum = &q
	}
	for _, r := range replicas {
		o.Replicas = append(o.Replicas, parseReplica(r))
	}
	o.Replayed, o.UpstreamEnd = lsnOrZero(replayed), lsnOrZero(upstreamEnd)
	if !standby {
		o.Position = cluster.Position{Timeline: timelineOf(timeline), LSN: lsnOrZero(flushed)}
		// What was asked over replication connections before a promotion is
		// not any more, and PostgreSQL wakes each of them with every commit.
		s.ident.drain()
		return o, nil
	}
	id, err := s.identify(ctx)
	o.Position = id.at
	return o, err
}

// parseReplica reads a word list of observeSQL; the name is last.
func parseReplica(text string) Replica {
	f := strings.SplitN(text, " ", 6)
	return Replica{Sync: f[0] == "sync", State: f[1], Flushed: lsnOrZero(f[2]), Replayed: lsnOrZero(f[3]), Address: f[4], Name: f[5]}
}

// lsnOrZero reads what PostgreSQL printed; empty is zero, which is no position.
func lsnOrZero(text string) cluster.LSN {
	lsn, _ := cluster.ParseLSN(text)
	return lsn
}
