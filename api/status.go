package api

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/understudy-ha/understudy/cluster"
)

// Node is what the HTTP surfaces need of the handler.
type Node interface {
	Mode() cluster.Mode // without I/O
	Report(ctx context.Context) cluster.Report
	// Active returns the active node, as far as this one knows.
	Active() (cluster.Node, bool)
	// MayHandOver returns the reason for which HandOver would be refused.
	MayHandOver(ctx context.Context, target string) error
	HandOver(ctx context.Context, target, why string) error
	// Force makes the node active although acknowledged commits may be missing.
	Force(ctx context.Context) error
}

// StatusOptions shape the plain HTTP port.
type StatusOptions struct {
	Paths     []string // aliases of /status
	BasicAuth string   // user:password; empty: none is asked for
}

// StatusHandler answers load balancers: /status with 200 on the active node and
// 400 elsewhere, and the paths that users of Patroni know with 200 or 503. What
// comes after /active is redirected to the active node, to /status by default.
func StatusHandler(n Node, o StatusOptions) http.Handler {
	mux := http.NewServeMux()
	status := func(w http.ResponseWriter, r *http.Request) { serveStatus(w, r, n) }
	mux.HandleFunc("/status", status)
	health := func(path string, ok func(cluster.Report) bool) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if !readOnly(w, r) {
				return
			}
			report, code := reportOf(r, n), http.StatusOK
			if !ok(report) {
				code = http.StatusServiceUnavailable
			}
			reply(w, code, statusOf(report))
		})
	}
	health("/leader", func(r cluster.Report) bool { return r.Mode != cluster.Closed })
	health("/replica", func(r cluster.Report) bool { return r.Role() == cluster.RoleStandby })
	health("/health", serves)
	health("/ready", serves)
	health("/live", func(cluster.Report) bool { return true })
	toActive := func(w http.ResponseWriter, r *http.Request) {
		redirect(w, r, n, CodeRedirect, strings.TrimPrefix(r.URL.Path, "/active"))
	}
	mux.HandleFunc("/active", toActive)
	mux.HandleFunc("/active/", toActive)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if slices.Contains(o.Paths, r.URL.Path) {
			status(w, r)
			return
		}
		notFound(w, r)
	})
	if o.BasicAuth == "" {
		return mux
	}
	return basicAuth(mux, o.BasicAuth)
}

// serves says that a node does what members of its kind are for.
func serves(r cluster.Report) bool {
	return r.Mode != cluster.Closed || r.Role() != cluster.RoleNone
}

func serveStatus(w http.ResponseWriter, r *http.Request, n Node) {
	if !readOnly(w, r) {
		return
	}
	report, code := reportOf(r, n), http.StatusBadRequest
	if asked := r.URL.Query().Get("mode"); report.Mode != cluster.Closed && (asked == "" || asked == string(report.Mode)) {
		code = http.StatusOK
	}
	reply(w, code, statusOf(report))
}

// reportOf is what the node says of itself. The report takes its time, so
// whether it is open is looked at once more.
func reportOf(r *http.Request, n Node) cluster.Report {
	report := n.Report(r.Context())
	if now := n.Mode(); now != report.Mode {
		report.Open, report.Mode = false, cluster.Closed
	}
	return report
}

func statusOf(r cluster.Report) Status {
	s := Status{Status: "standby", Node: r.Node, Cluster: r.Cluster, Role: r.State, Mode: r.Mode, Epoch: r.Epoch, Paused: r.Paused, Services: r.Services}
	switch {
	case r.Mode != cluster.Closed:
		s.Status = "active"
	case r.State == cluster.Executing:
		s.Status = "runner"
	}
	if s.Mode == cluster.Closed {
		s.Mode = cluster.MajorityMode
	}
	s.AtRisk = r.Side != nil
	s.Removed = r.State == cluster.Leaving
	return s
}

// readOnly lets GET and HEAD through, answers OPTIONS, and refuses the rest.
func readOnly(w http.ResponseWriter, r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return true
	case http.MethodOptions:
		w.Header().Set("Allow", "GET, HEAD, OPTIONS")
		w.WriteHeader(http.StatusOK)
	default:
		w.Header().Set("Allow", "GET, HEAD, OPTIONS")
		fail(w, Errorf(http.StatusMethodNotAllowed, CodeBadRequest, "%s is not supported here", r.Method))
	}
	return false
}

func basicAuth(next http.Handler, want string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		got := user + ":" + password
		if subtle.ConstantTimeCompare([]byte(got), []byte(strings.TrimSpace(want))) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="understudy"`)
			fail(w, Errorf(http.StatusUnauthorized, CodeForbidden, "user name or password is wrong"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	// The client may have gone; there is nobody to tell.
	_ = json.NewEncoder(w).Encode(body)
}

func notFound(w http.ResponseWriter, r *http.Request) {
	fail(w, Errorf(http.StatusNotFound, CodeNotFound, "there is no %s %s here", r.Method, r.URL.Path))
}

func fail(w http.ResponseWriter, e *Error) { reply(w, e.Status, e) }
