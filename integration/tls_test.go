package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/walferry/walferry/restore/instance"
)

// authority issues certificates.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	a := &authority{t: t}
	_, a.cert, a.key = a.issue(template, nil)
	return a
}

// issue signs the template by a's key, or by its own when parent is nil.
func (a *authority) issue(template, parent *x509.Certificate) (der []byte, cert *x509.Certificate, key *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	signer := a.key
	if parent == nil {
		parent, signer = template, key
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	if der, err = x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer); err != nil {
		a.t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		a.t.Fatal(err)
	}
	return der, cert, key
}

// root is the certificate as clients want it.
func (a *authority) root() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

// server issues a certificate for a host.
func (a *authority) server(host string) (cert, key []byte) {
	a.t.Helper()
	der, _, private := a.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.cert)
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

// The connection that the documentation asks for, all of it in files: a
// service, the password in .pgpass, SCRAM, and TLS with verify-full, over
// which the whole way goes. A server of another name, and one whose
// certificate another authority has signed, do not get as far as a slot.
func TestVerifiedConnection(t *testing.T) {
	t.Parallel()
	const host = "db.walferry.test"
	s := newScene(t, options{listen: true, hba: []string{"hostssl replication walferry 127.0.0.1/32 scram-sha-256"}})
	ours, another := newAuthority(t), newAuthority(t)
	cert, key := ours.server(host)
	for name, content := range map[string][]byte{"server.crt": cert, "server.key": key} {
		path := filepath.Join(s.dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := theLab.account.Own(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.pg.Configure(map[string]string{
		"ssl": "on", "ssl_cert_file": filepath.Join(s.dir, "server.crt"), "ssl_key_file": filepath.Join(s.dir, "server.key"),
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.pg.Stop(s.ctx(), instance.Fast); err != nil {
		t.Fatal(err)
	}
	s.startServer()
	s.sql("SET password_encryption = 'scram-sha-256'; CREATE ROLE walferry LOGIN REPLICATION PASSWORD 'a secret'")

	s.writeHome("ours.crt", ours.root())
	s.writeHome("another.crt", another.root())
	s.writeHome(".pgpass", fmt.Sprintf("*:%d:replication:walferry:a secret\n", s.pg.Port()))
	service := func(name, host, root string) string {
		return fmt.Sprintf("[%s]\nhost=%s\nhostaddr=127.0.0.1\nport=%d\nuser=walferry\nsslmode=verify-full\nsslrootcert=%s\n",
			name, host, s.pg.Port(), filepath.Join(s.home, root))
	}
	s.writeHome(".pg_service.conf", service("good", host, "ours.crt")+
		service("other-name", "other.walferry.test", "ours.crt")+
		service("other-authority", host, "another.crt"))

	for name, says := range map[string]string{
		"other-name":      `valid for db\.walferry\.test, not other\.walferry\.test`,
		"other-authority": `unknown authority`,
	} {
		r := s.receive("-d", "service="+name)
		r.awaitLog(says)
		r.kill9()
		if n := s.sql("SELECT count(*) FROM pg_replication_slots"); n != "0" {
			t.Fatalf("%s: there are %s slots", name, n)
		}
	}

	r := s.receive("-d", "service=good")
	first := s.slotSegment()
	s.table()
	s.fill(2000)
	last := s.switchWAL()
	s.awaitSealed(first, last)
	if n := s.sql("SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_replication USING (pid) WHERE ssl"); n != "1" {
		t.Errorf("%s receivers are connected with TLS, want 1", n)
	}
	r.stop()
	s.checkArchive(first, last)
}
