package filesync

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/understudy-ha/understudy/cluster"
	"github.com/understudy-ha/understudy/statefile"
)

func TestMain(m *testing.M) {
	if err := Quiet(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// An authority signs the certificates of a test's nodes.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	ok(t, err)
	cert, err := x509.ParseCertificate(der)
	ok(t, err)
	a := &authority{cert: cert, key: key, pool: x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ok(t, err)
	return key
}

// issue makes a node's certificate; with until in the past it has expired.
func (a *authority) issue(t testing.TB, name string, until time.Time) (tls.Certificate, string) {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	ok(t, err)
	id, err := DeviceID(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	ok(t, err)
	return tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}, id
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A store stands for the registry: one view, watched by all.
type store struct {
	mu      sync.Mutex
	view    cluster.View
	failing bool
	moved   chan struct{} // closed and replaced at every change
	files   cluster.FilesReport
	any     bool
}

func newStore() *store {
	return &store{
		view:  cluster.View{Info: &cluster.Info{ID: "test"}, Nodes: map[string]cluster.Node{}},
		moved: make(chan struct{}),
	}
}

func (s *store) change(f func(*cluster.View)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.view
	next.Index++
	next.Nodes = map[string]cluster.Node{}
	for k, v := range s.view.Nodes {
		next.Nodes[k] = v
	}
	f(&next)
	s.view = next
	close(s.moved)
	s.moved = make(chan struct{})
}

func (s *store) fail(on bool) {
	s.mu.Lock()
	s.failing = on
	s.mu.Unlock()
	s.change(func(*cluster.View) {})
}

func (s *store) Watch(ctx context.Context, changed func(cluster.View), failed func(error)) error {
	for {
		s.mu.Lock()
		v, moved, failing := s.view, s.moved, s.failing
		s.mu.Unlock()
		if failing {
			failed(errors.New("no leader"))
		} else {
			changed(v)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moved:
		}
	}
}

func (s *store) Files(context.Context) (cluster.FilesReport, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files, s.any, nil
}

func (s *store) PublishFiles(_ context.Context, r cluster.FilesReport) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Epoch < s.files.Epoch {
		return errors.New("superseded")
	}
	s.files, s.any = r, true
	return nil
}

// activate makes a node hold the leader lock for an epoch.
func (s *store) activate(name string, epoch cluster.Epoch) {
	s.change(func(v *cluster.View) {
		v.NextMaster = cluster.Assignment{Node: name, Epoch: epoch}
		v.Leader = cluster.Leader{Node: name, Epoch: epoch, Held: true}
	})
}

// A site is one node of a test.
type site struct {
	t      testing.TB
	name   string
	opts   Options
	store  *store
	engine *Engine
	stop   func()
}

// newSites makes nodes with empty folders on free ports and enters them in the
// registry; none runs yet.
func newSites(t testing.TB, names ...string) (*store, []*site) {
	t.Helper()
	ca, st := newAuthority(t), newStore()
	base, err := os.MkdirTemp("", "filesync")
	ok(t, err)
	t.Cleanup(func() { os.RemoveAll(base) })
	var sites []*site
	for i, name := range names {
		cert, id := ca.issue(t, name, time.Now().Add(time.Hour))
		ip := fmt.Sprintf("127.10.3.%d", i+1)
		port := freePort(t, ip)
		s := &site{t: t, name: name, store: st, opts: Options{
			Name: name, Listen: fmt.Sprintf("%s:%d", ip, port), Certificate: cert, CA: ca.pool,
			StateDir: filepath.Join(base, name, "state"),
			Folders:  []Folder{{ID: "data", Path: filepath.Join(base, name, "data"), Ignore: []string{"*.ignored"}}},
			Logger:   testLog(name),
		}}
		st.change(func(v *cluster.View) {
			v.Nodes[name] = cluster.Node{Name: name, Address: ip, DeviceID: id, Ports: cluster.Ports{FileSync: port}}
		})
		sites = append(sites, s)
	}
	return st, sites
}

// testLog shows what the nodes log when FILESYNC_TEST_LOG is set.
func testLog(name string) *slog.Logger {
	if os.Getenv("FILESYNC_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name)
}

func freePort(t testing.TB, ip string) int {
	t.Helper()
	l, err := net.Listen("tcp", ip+":0")
	ok(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// run opens the engine and follows the registry until the site is halted.
func (s *site) run() {
	s.t.Helper()
	e, err := Open(s.opts)
	ok(s.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Follow(ctx, e, s.store, s.name, s.reportFile(), s.opts.Logger) }()
	s.engine = e
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Errorf("%s: follow: %v", s.name, err)
		}
		if err := e.Close(); err != nil {
			s.t.Errorf("%s: close: %v", s.name, err)
		}
	})
	s.t.Cleanup(s.stop)
}

func (s *site) reportFile() string { return filepath.Join(s.opts.StateDir, "files.json") }

func (s *site) report() cluster.FilesReport {
	r, err := statefile.Read[cluster.FilesReport](s.reportFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.t.Error(err)
	}
	return r
}

func (s *site) path(name string) string { return filepath.Join(s.opts.Folders[0].Path, name) }

// write replaces a file at one stroke, so that no half of it is synchronised.
func (s *site) write(name, text string) {
	s.t.Helper()
	beside := s.path(name) + ".ignored"
	ok(s.t, os.MkdirAll(filepath.Dir(beside), 0o755))
	ok(s.t, os.WriteFile(beside, []byte(text), 0o644))
	ok(s.t, os.Rename(beside, s.path(name)))
}

// read returns a file's content, or "-" where there is none.
func (s *site) read(name string) string {
	text, err := os.ReadFile(s.path(name))
	if err != nil {
		return "-"
	}
	return string(text)
}

// kept returns the contents of the kept versions of a file, links as their
// target, in one of the halves or, with "", in both; oldest first.
func (s *site) kept(half, name string) []string {
	return s.keptWhere(half, func(base string) bool { return base == name })
}

// keptLike is kept for every file whose name begins like that.
func (s *site) keptLike(half, name string) []string {
	return s.keptWhere(half, func(base string) bool { return strings.HasPrefix(base, name) })
}

func (s *site) keptWhere(half string, wanted func(string) bool) (texts []string) {
	root := filepath.Join(s.opts.StateDir, "versions", "data")
	err := filepath.WalkDir(filepath.Join(root, half), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		_, rel, _ = strings.Cut(rel, "/")
		base, _, isVersion := keptAt(rel)
		if !isVersion || !wanted(base) {
			return nil
		}
		switch {
		case d.IsDir():
			texts = append(texts, "(directory)")
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			ok(s.t, err)
			texts = append(texts, "-> "+target)
		default:
			text, err := os.ReadFile(path)
			ok(s.t, err)
			texts = append(texts, string(text))
		}
		return nil
	})
	ok(s.t, err)
	return texts
}

// eventually waits for a condition, up to a generous limit.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}

// inSync waits until the sites report to have everything, as of the epoch.
func inSync(t testing.TB, epoch cluster.Epoch, sites ...*site) {
	t.Helper()
	for _, s := range sites {
		eventually(t, fmt.Sprintf("%s complete in epoch %d", s.name, epoch), func() bool {
			r := s.report()
			return r.Epoch == epoch && r.Complete == cluster.Yes
		})
	}
}

// has waits until a file reads as given at all sites.
func has(t testing.TB, name, text string, sites ...*site) {
	t.Helper()
	for _, s := range sites {
		eventually(t, fmt.Sprintf("%s has %s = %q", s.name, name, text), func() bool { return s.read(name) == text })
	}
}
