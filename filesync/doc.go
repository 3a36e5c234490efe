// Package filesync keeps the folders of all members equal, with Syncthing as a
// library. It is the only importer of Syncthing.
//
// The active node's folders are the source (Sending); everybody else's follow
// (Receiving). Three things are added to what Syncthing does by itself:
//
//   - Peers are held to the cluster's CA and to the dates of their
//     certificates, not only to a known device.
//   - Nothing is lost: every file, symbolic link and directory that Syncthing
//     would replace or remove is first moved out of the tree (keep.go).
//   - A former active's unsent changes, and edits made on a standby, do not
//     spread: the active overrides, the others revert (decide.go).
//
// Syncthing v1.30.0 is the last version that can be had as a module. Its
// assembly here leaves out the GUI, the REST API, discovery, relays, NAT
// traversal, upgrades, usage and crash reports. It panics where its database
// fails, so it runs in a process of its own.
package filesync
