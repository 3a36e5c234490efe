// Package lab raises whole Debian machines with systemd, journald and D-Bus on
// this host, to test what only a real machine can show: unit files, drop-ins,
// boots and power cuts. It needs root, debootstrap and systemd-nspawn;
// "packaging/setup test" installs the two.
//
// A lab is a set of namespaces of its own for processes, mounts and network. All
// of its machines are in it, on one bridge that leads nowhere else, and nothing of
// it outlives the process that raised it, however that ends.
package lab
