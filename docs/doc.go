// Package docs holds the documentation and keeps it true: its tests write the
// tables and diagrams that follow from the code, and run every command line.
package docs

//go:generate go test . -run ^TestGenerated$ -update
