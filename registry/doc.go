// Package registry keeps the shared state of the cluster in Consul. It is the
// only importer of Consul's client.
//
// All reads are consistent reads, and every write of a decision is a
// compare-and-set or holds a session. An error of a write leaves open whether
// it was done: the answer may have been lost on the way, so read again before
// deciding. An empty store is reported as it is; whether that is a new cluster
// or a lost one is for the caller to tell.
//
// The keys:
//
//	understudy/cluster         cluster.Info
//	understudy/nodes/NAME      cluster.Node
//	understudy/next-master     cluster.Assignment
//	understudy/leader          cluster.Leader, held by a session
//	understudy/sync            cluster.SyncSet
//	understudy/removed/NAME    cluster.Tombstone
//	understudy-events/ID       Event
//	understudy-files/active    cluster.FilesReport
//	understudy-tokens/ID       Token
//
// Only the first prefix wakes those who decide.
package registry
