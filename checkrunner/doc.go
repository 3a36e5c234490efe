// Package checkrunner measures one node and posts what it found to the TTL
// checks of the local Consul agent.
//
// Every check runs in a loop of its own, so that one that hangs does not hold
// up the others. Whether a measurement passes, fails or only lets the TTL run
// is decided by pure functions of what was seen and when.
package checkrunner
