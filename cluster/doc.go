// Package cluster is the vocabulary of understudy and every decision it takes.
//
// All of it is pure: no I/O, no clock, no goroutine, no logger. A decision is a
// function of what was observed and of the time passed in, and it carries the
// reason in the words that the log, the status and the tests use. "Not known"
// is a value of every observation, never false, and leads to the safe action.
package cluster
