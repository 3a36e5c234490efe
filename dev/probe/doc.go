// Package probe measures what the clients of a cluster see. A writer puts one
// row after the other into whichever node takes writes and remembers what was
// acknowledged, and when; Verify then looks for every one of these rows on every
// node.
package probe
