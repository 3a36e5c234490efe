package services

import "syscall"

// Request is one line that a client sends to a node's init: the operation and
// what it is about. An answer follows for every request, except for OpWatch,
// which is answered by one Event for each unit and one for each change, for ever.
// That to OpInhibit comes when the node is to go down, which then waits until the
// client hangs up.
type Request struct {
	Op     Op             `json:"op"`
	Unit   string         `json:"unit,omitempty"`
	Signal syscall.Signal `json:"signal,omitempty"` // of OpKill
}

// Op names what a node's init can do.
type Op string

// The operations.
const (
	OpStart    Op = "start"
	OpStop     Op = "stop"
	OpKill     Op = "kill"
	OpState    Op = "state"
	OpStates   Op = "states" // of all units that are known
	OpEnable   Op = "enable"
	OpDisable  Op = "disable"
	OpReload   Op = "reload"   // check all unit files
	OpShutdown Op = "shutdown" // stop everything in order and exit
	OpWatch    Op = "watch"
	OpInhibit  Op = "inhibit" // be told of a shutdown beforehand, and hold it up
)

// Response answers a Request.
type Response struct {
	Code   Code             `json:"code,omitempty"`
	Error  string           `json:"error,omitempty"`
	State  State            `json:"state,omitzero"`
	States map[string]State `json:"states,omitempty"`
}

// Code tells errors apart across the socket.
type Code string

// The codes of errors.
const (
	CodeOK      Code = ""
	CodeUnknown Code = "unknown-unit" // ErrUnknownUnit
	CodeFailed  Code = "failed"       // ErrFailed
	CodeOther   Code = "other"
)

// Event is one line of OpWatch.
type Event struct {
	Unit  string `json:"unit"`
	State State  `json:"state"`
}
