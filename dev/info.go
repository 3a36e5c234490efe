package dev

import (
	"cmp"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/config"
)

// Info describes a dev cluster; dev info --json prints it.
type Info struct {
	Dir   string     `json:"dir"`
	Nodes []NodeInfo `json:"nodes"`
}

// NodeInfo describes one node.
type NodeInfo struct {
	Name      string         `json:"name"`
	Kind      cluster.Kind   `json:"kind"`
	Address   string         `json:"address"`
	State     string         `json:"state"` // see the State constants; else what /status says
	Root      string         `json:"root"`
	StatusURL string         `json:"status_url"`
	APIURL    string         `json:"api_url"`
	ConsulURL string         `json:"consul_url"` // a client certificate of the cluster is needed
	NotesURL  string         `json:"notes_url"`
	Postgres  PostgresInfo   `json:"postgres,omitzero"` // a runner has none
	Folders   []string       `json:"folders"`
	Pids      map[string]int `json:"pids"` // of init and of the components that run
}

// PostgresInfo says how to reach a node's PostgreSQL.
type PostgresInfo struct {
	DSN     string `json:"dsn"` // as superuser
	Port    int    `json:"port"`
	DataDir string `json:"data_dir"`
}

// The states of NodeInfo that do not come from the node itself.
const (
	StateDown   = "down"   // no process
	StateFrozen = "frozen" // stopped by Freeze
	StateUp     = "up"     // its init runs, but /status does not answer
	StateLeader = "leader" // /status answers 200
)

// statusTimeout bounds how long Describe waits for a node's /status.
const statusTimeout = time.Second

// Describe looks at a dev cluster. The error wraps ErrNoCluster.
func Describe(ctx context.Context, dir string) (Info, error) {
	c, err := Open(dir)
	if err != nil {
		return Info{}, err
	}
	info := Info{Dir: c.Dir, Nodes: make([]NodeInfo, len(c.Nodes))}
	index := make(map[string]int)
	for i, n := range c.Nodes {
		index[n.Name] = i
	}
	err = c.each(func(n Node) error {
		var err error
		info.Nodes[index[n.Name]], err = n.describe(ctx)
		return err
	})
	return info, err
}

func (n Node) describe(ctx context.Context) (NodeInfo, error) {
	conf, err := config.Load(n.Root)
	if err != nil {
		return NodeInfo{}, err
	}
	at := func(scheme string, port int) string {
		return scheme + "://" + net.JoinHostPort(n.Address, strconv.Itoa(port))
	}
	info := NodeInfo{
		Name: n.Name, Kind: cmp.Or(n.Kind, cluster.Manager), Address: n.Address, Root: n.Root, State: StateDown, Pids: make(map[string]int),
		StatusURL: at("http", conf.StatusPort()) + "/status", APIURL: at("https", conf.APIPort()),
		ConsulURL: at("https", PortConsul), NotesURL: at("http", PortNotes),
	}
	if !n.runner() {
		info.Postgres = PostgresInfo{DSN: dsn(n.Address), Port: conf.Postgres.Port, DataDir: conf.Postgres.DataDir}
	}
	for _, f := range conf.Files {
		info.Folders = append(info.Folders, f.Path)
	}
	r, up := n.record()
	if !up {
		return info, nil
	}
	info.Pids["init"] = r.Init.PID
	if frozen(r) {
		info.State = StateFrozen
		return info, nil
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for unit, state := range n.states(call) {
		if state.MainPID != 0 {
			info.Pids[componentOf(unit)] = state.MainPID
		}
	}
	info.State = status(ctx, info.StatusURL)
	return info, nil
}

// status asks a node what it is.
func status(ctx context.Context, url string) string {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return StateUp
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return StateUp
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK {
		return StateLeader
	}
	var said struct {
		Role string `json:"role"`
	}
	if err := json.NewDecoder(response.Body).Decode(&said); err != nil || said.Role == "" {
		return StateUp
	}
	return said.Role
}

// logFiles returns the logs of a node.
func (n Node) logFiles() ([]string, error) {
	entries, err := os.ReadDir(n.layout().Log)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".log" {
			files = append(files, filepath.Join(n.layout().Log, e.Name()))
		}
	}
	return files, nil
}
