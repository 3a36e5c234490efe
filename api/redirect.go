package api

import (
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/understudy-ha/understudy/cluster"
)

// redirect answers a request that is meant for the active node with where that is: 307,
// which has the client repeat its method and body there. The scheme stays as it is. While
// nobody is active, as far as this node knows, the answer is 503.
func redirect(w http.ResponseWriter, r *http.Request, n Node, code, path string) {
	active, ok := n.Active()
	if !ok {
		fail(w, Errorf(http.StatusServiceUnavailable, CodeNoActive, "no node is active at the moment, as far as this node knows"))
		return
	}
	to := url.URL{Scheme: "http", Host: hostPort(active.Address, active.Ports.Status), RawQuery: r.URL.RawQuery}
	if r.TLS != nil {
		to.Scheme, to.Host = "https", hostPort(active.Address, active.Ports.API)
	}
	// Without this, //host would be another host's.
	if to.Path = "/" + strings.TrimLeft(path, "/"); to.Path == "/" {
		to.Path = "/status"
	}
	w.Header().Set("Location", to.String())
	fail(w, Errorf(http.StatusTemporaryRedirect, code, "%s is active: ask %s", active.Name, to.String()))
}

// activeOnly lets requests through to the active node, and redirects them on all others.
func (b Backend) activeOnly(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch b.Node.Mode() {
		case cluster.MajorityMode:
			next(w, r)
		case cluster.AtRiskMode:
			fail(w, Errorf(http.StatusConflict, CodeNotActive, "this node serves a part of the cluster that is cut off"))
		default:
			redirect(w, r, b.Node, CodeNotActive, r.URL.Path)
		}
	}
}

func hostPort(address string, port int) string { return net.JoinHostPort(address, strconv.Itoa(port)) }
