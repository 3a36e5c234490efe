// Package watcher judges how well one node is connected, and keeps Consul's Raft
// leader off the active node.
//
// It asks the local Consul agent for a leader and probes every other manager
// directly. cluster.Connectivity turns that into a verdict, which is written to
// a file for the other daemons of the node.
package watcher
