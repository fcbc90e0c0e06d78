package integration

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/integration/s3server"
	"github.com/walferry/walferry/restore/instance"
)

// outage is how long storage is away in the test that says so: long enough
// for every retry of a single call to be used up.
const outage = 20 * time.Second

const bucket, prefix = "backups", "cluster/main"

// bucketScene is a scene with an S3 server of its own behind a proxy, and a
// user who may do what the documentation asks for and nothing else.
type bucketScene struct {
	*scene
	s3    *s3server.Server
	proxy *s3server.Proxy
	user  s3server.User
	// vars are what a person who uses WAL-G has exported, less the keys.
	vars []string
}

func newBucketScene(t *testing.T, o options) *bucketScene {
	t.Helper()
	o.listen = true
	o.hba = []string{"host replication,postgres walferry 127.0.0.1/32 trust"}
	s := &bucketScene{scene: newScene(t, o), s3: s3server.Start(t)}
	s.s3.MakeBucket(t, bucket)
	s.user = s.s3.AddUser(t, bucket)
	s.proxy = s.s3.Proxy(t)
	s.archive = filepath.Join(s.s3.Dir, bucket, prefix)
	s.sql("CREATE ROLE walferry LOGIN REPLICATION")
	s.vars = []string{
		"HOME=" + s.home, "WALFERRY_HOME=" + s.home, "WALFERRY_SLOT=ferry",
		"PGHOST=127.0.0.1", fmt.Sprint("PGPORT=", s.pg.Port()), "PGUSER=walferry",
		"WALE_S3_PREFIX=s3://" + bucket + "/" + prefix,
		"AWS_ENDPOINT=" + s.proxy.URL, "AWS_S3_FORCE_PATH_STYLE=true", "AWS_REGION=us-east-1",
	}
	s.spool = filepath.Join(s.home, "spool")
	return s
}

// credentials writes ~/.aws/credentials.
func (s *bucketScene) credentials(profile, access, secret string) {
	s.t.Helper()
	s.writeHome(".aws/credentials", fmt.Sprintf("[%s]\naws_access_key_id = %s\naws_secret_access_key = %s\n", profile, access, secret))
}

// ferry runs the binary with the environment alone, and more variables.
func (s *bucketScene) ferry(more []string, args ...string) *process {
	s.t.Helper()
	p := start(s.t, append(append([]string{}, s.vars...), more...), s.binary, args...)
	s.t.Cleanup(func() {
		if strings.Contains(p.log(), s.user.SecretKey) {
			s.t.Error("the secret key is in the log")
		}
	})
	return p
}

// The environment that a WAL-G user has already is all that it takes, for
// receive and for a recovery, as an S3 user with exactly the three actions.
func TestWALGUser(t *testing.T) {
	for _, c := range []struct {
		name    string
		profile string
		vars    []string // over the scene's
		config  string   // ~/.aws/config
	}{
		{name: "default profile", profile: "default"},
		{name: "named profile, region in a file", profile: "walg", vars: []string{"AWS_PROFILE=walg", "AWS_REGION="},
			config: "[profile walg]\nregion = us-east-1\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newBucketScene(t, options{})
			s.credentials(c.profile, s.user.AccessKey, s.user.SecretKey)
			if c.config != "" {
				s.writeHome(".aws/config", c.config)
			}
			r := s.ferry(c.vars, "receive")
			first := s.slotSegment()
			s.table()
			s.fill(2000)
			last := s.switchWAL()
			s.awaitSealed(first, last)
			s.checkArchive(first, last)
			r.stop()
			if err := s.pg.Kill(s.ctx()); err != nil {
				t.Fatal(err)
			}
			s.recoverFromBucket(c.vars, 2000)
		})
	}
}

// recoverFromBucket recovers the cold copy with the scene's variables, after
// a few restore_commands that must not end the recovery.
func (s *bucketScene) recoverFromBucket(vars []string, want int) {
	t := s.t
	t.Helper()
	vars = append(append([]string{}, s.vars...), vars...)
	good := s.binary + " fetch %f %p"
	for _, b := range []broken{
		{name: "wrong secret", command: "AWS_ACCESS_KEY_ID=" + s.user.AccessKey + " AWS_SECRET_ACCESS_KEY=wrong " + good, says: "denied"},
		{name: "unknown user", command: "AWS_ACCESS_KEY_ID=nobody AWS_SECRET_ACCESS_KEY=wrong " + good, says: "denied"},
		{name: "missing bucket", command: "WALE_S3_PREFIX=s3://nowhere/" + prefix + " " + good, says: "nowhere"},
		{name: "wrong prefix", command: "WALE_S3_PREFIX=s3://" + bucket + "/wrong " + good, says: "wrong"},
		{name: "server away", command: "AWS_ENDPOINT=http://127.0.0.1:1 " + good, says: "127.0.0.1:1"},
		{name: "misspelt URL key", command: "WALFERRY_STORE='s3://" + bucket + "/" + prefix + "?regoin=x' " + good, says: "regoin"},
		{name: ""},
	} {
		if b.name == "" {
			b.command = good
		} else {
			b.command = "WALFERRY_BUDGET=1s " + b.command
		}
		pg := s.recoveryWith("recovered", "recovery.signal", b.command, vars)
		if err := pg.Launch(s.ctx()); err != nil {
			t.Fatal(err)
		}
		err := pg.AwaitPrimary(s.ctx())
		if b.name != "" {
			if !errors.Is(err, instance.ErrExited) {
				t.Fatalf("%s: the server did not stop: %v", b.name, err)
			}
			s.unpromoted(pg, b)
		} else {
			if err != nil {
				t.Fatal(err)
			}
			if err := pg.AwaitReady(s.ctx()); err != nil {
				t.Fatal(err)
			}
			if got := rows(s.ctx(), pg); got != want {
				t.Errorf("%d rows were recovered, want %d", got, want)
			}
		}
		if err := pg.Remove(s.ctx()); err != nil {
			t.Fatal(err)
		}
	}
}

// One PUT a segment and nothing else: no list, no look whether it is there.
func TestRequestsPerSegment(t *testing.T) {
	t.Parallel()
	s := newBucketScene(t, options{})
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	r := s.ferry(nil, "receive", "--ship-interval", "0")
	first := s.slotSegment()
	s.table()
	s.awaitSealed(first, s.switchWAL())
	s.proxy.ResetCounts()
	before := len(s.sealed())
	for range 5 {
		s.fill(300)
		s.switchWAL()
	}
	s.awaitSealed(first, s.switchWAL())
	r.stop()
	put := len(s.sealed()) - before
	for name, n := range s.proxy.Counts() {
		if name != "PUT wal_005" || n != put {
			t.Errorf("%d requests %q for %d segments, want a PUT for each and nothing else", n, name, put)
		}
	}
}

// Storage fails in every way that it has, for a while, under load. Reception
// goes on, and in the end nothing is missing and nothing is different.
func TestBucketAway(t *testing.T) {
	t.Parallel()
	s := newBucketScene(t, options{})
	s.credentials("default", s.user.AccessKey, s.user.SecretKey)
	r := s.ferry(nil, "receive")
	first := s.slotSegment()
	l := s.pgbench()
	s.awaitSealed(first, first)

	// Singly: the answer to a PUT that was done is lost (the next one finds
	// its own object), a connection is reset, the server is busy.
	s.proxy.Inject(s3server.LostAnswer, "PUT wal_005", 2)
	s.proxy.Inject(s3server.Reset, "PUT wal_005", 1)
	s.proxy.Inject(s3server.Unavailable, "PUT wal_005", 2)
	s.sql("CHECKPOINT")
	before := len(s.sealed())
	eventually(t, "segments in spite of single faults", func() bool { return len(s.sealed()) >= before+5 })

	s.proxy.Inject(s3server.BlackHole, "", 4)
	s.proxy.Inject(s3server.Unavailable, "", -1)
	away := time.After(outage)
	s.sql("CHECKPOINT")
	sent := s.currentLSN()
	eventually(t, "the receiver to go on while the storage is away", func() bool {
		return s.sql(fmt.Sprintf("SELECT coalesce(min(sent_lsn), '0/0') > '%s'::pg_lsn + 1000000 FROM pg_stat_replication", sent)) == "t"
	})
	r.awaitLog(`cannot write to the archive`)
	<-away
	s.proxy.Heal()
	l.stop()
	last := s.switchWAL()
	s.awaitSealed(first, last)
	s.checkArchive(first, last)
	r.awaitLog(`can write to the archive again`)
	r.stop()
}

func (s *scene) currentLSN() string {
	s.t.Helper()
	return s.sql("SELECT pg_current_wal_lsn()")
}

// Wrong keys and a missing bucket are one clear line, without the secret; the
// server keeps what the receiver does not get, and after the mend all is there.
func TestBucketRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		says  string // a pattern
		spoil func(s *bucketScene)
		mend  func(s *bucketScene)
		live  bool // the mend needs no new process
	}{
		{"wrong secret", `(?i)denied|SignatureDoesNotMatch`,
			func(s *bucketScene) { s.credentials("default", s.user.AccessKey, "not-the-secret") },
			func(s *bucketScene) { s.credentials("default", s.user.AccessKey, s.user.SecretKey) }, false},
		{"missing bucket", `no such store|NoSuchBucket|elsewhere`,
			func(s *bucketScene) { s.vars = append(s.vars, "WALE_S3_PREFIX=s3://elsewhere/"+prefix) },
			func(s *bucketScene) { s.vars = s.vars[:len(s.vars)-1] }, false},
		{"no permission to write", `(?i)denied`,
			func(s *bucketScene) { s.s3.SetPolicy(s.t, bucket, s.user, "s3:GetObject", "s3:ListBucket") },
			func(s *bucketScene) {
				s.s3.SetPolicy(s.t, bucket, s.user, "s3:GetObject", "s3:PutObject", "s3:ListBucket")
			}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newBucketScene(t, options{})
			s.credentials("default", s.user.AccessKey, s.user.SecretKey)
			s.sql("SELECT pg_create_physical_replication_slot('ferry', true)")
			first := s.slotSegment()
			c.spoil(s)
			r := s.ferry(nil, "receive")
			r.awaitLog(c.says)
			if strings.Contains(r.log(), "not-the-secret") {
				t.Error("the secret is in the log")
			}
			s.table()
			s.fill(2000)
			last := s.switchWAL()
			if !r.running() {
				t.Fatal("the receiver has given up")
			}
			if n := len(s.sealed()); n > 0 {
				t.Errorf("%d segments were stored all the same", n)
			}
			if !c.live {
				r.stop()
			}
			c.mend(s)
			if !c.live {
				r = s.ferry(nil, "receive")
			}
			s.awaitSealed(first, last)
			s.checkArchive(first, last)
			r.stop()
		})
	}
}
