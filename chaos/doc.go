// Package chaos hurts a real cluster, again and again, while clients write to it
// and read from it, and then checks what they saw. Which faults there are and in
// which order is drawn from a seed. After every round of them everything is healed, the cluster
// has to recover within a bounded time, and the history has to be linearizable.
package chaos
