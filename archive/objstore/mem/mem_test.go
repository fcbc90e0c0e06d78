package mem_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/walferry/walferry/archive/objstore"
	"github.com/walferry/walferry/archive/objstore/mem"
	"github.com/walferry/walferry/archive/objstore/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) objstore.Store { return mem.New() })
}

func TestStoreWithoutChecksums(t *testing.T) {
	storetest.Run(t, func(*testing.T) objstore.Store { return mem.NewWith(mem.Options{NoCRC: true}) })
}

func TestMisbehaviour(t *testing.T) {
	lost := errors.New("lost")
	var fail mem.Op
	s := mem.NewWith(mem.Options{
		IgnoreCondition: true,
		Before: func(_ context.Context, op mem.Op, key string) error {
			if op == fail && key == "b" {
				return lost
			}
			return nil
		},
		After: func(_ context.Context, op mem.Op, key string) error {
			if key == "c" {
				return lost
			}
			return nil
		},
	})
	for range 2 {
		if err := s.PutIfAbsent(t.Context(), "a", objstore.Bytes(nil)); err != nil {
			t.Errorf("put-if-absent of a store that ignores the condition: %v", err)
		}
	}
	fail = mem.PutIfAbsent
	if err := s.PutIfAbsent(t.Context(), "b", objstore.Bytes(nil)); !errors.Is(err, lost) {
		t.Errorf("the hook's error became %v", err)
	}
	if err := s.Put(t.Context(), "c", objstore.Bytes(nil)); !errors.Is(err, lost) {
		t.Errorf("the hook's error became %v", err)
	}
	var got []string
	for info, err := range s.List(t.Context(), objstore.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, info.Key)
	}
	if len(got) != 2 || got[0] != "a" || got[1] != "c" {
		t.Errorf("the store holds %q, want a and the c whose answer was lost", got)
	}
}

// An upload's calls can be made to fail, before they do anything and behind it.
func TestMisbehavingUploads(t *testing.T) {
	lost := errors.New("lost")
	for _, op := range []mem.Op{mem.BeginUpload, mem.UploadPart, mem.CompleteUpload, mem.AbortUpload, mem.AbortUploads} {
		for _, behind := range []bool{false, true} {
			failed := 0
			hook := func(on bool) func(context.Context, mem.Op, string) error {
				return func(_ context.Context, now mem.Op, _ string) error {
					if on && now == op && failed == 0 {
						failed++
						return lost
					}
					return nil
				}
			}
			s := mem.NewWith(mem.Options{Before: hook(!behind), After: hook(behind)})
			u, err := s.BeginUpload(t.Context(), "a")
			if err != nil {
				u, err = s.BeginUpload(t.Context(), "a")
			}
			if err != nil {
				t.Fatal(err)
			}
			one := objstore.Bytes([]byte("1"))
			if err := u.Part(t.Context(), 1, 0, one); err != nil {
				if err := u.Complete(t.Context()); err == nil {
					t.Errorf("%s: an object was made of a part that failed", op)
				}
				err = u.Part(t.Context(), 1, 0, one)
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := u.Complete(t.Context()); err != nil {
				_, _, getErr := s.Get(t.Context(), "a")
				if behind != (getErr == nil) {
					t.Errorf("%s, answer lost %v: then get says %v", op, behind, getErr)
				}
				if err := u.Complete(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			other, err := s.BeginUpload(t.Context(), "b")
			if err != nil {
				t.Fatal(err)
			}
			if err := other.Abort(t.Context()); err != nil {
				if got := len(s.Uploads()); behind == (got > 0) && op == mem.AbortUpload {
					t.Errorf("abort, answer lost %v: %d uploads are left", behind, got)
				}
				if err := other.Abort(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.AbortUploads(t.Context(), "a", time.Now().Add(time.Hour)); err != nil {
				if _, err := s.AbortUploads(t.Context(), "a", time.Now().Add(time.Hour)); err != nil {
					t.Fatal(err)
				}
			}
			if failed != 1 || len(s.Uploads()) != 0 {
				t.Errorf("%s, answer lost %v: failed %d times, uploads left %q", op, behind, failed, s.Uploads())
			}
		}
	}
}
