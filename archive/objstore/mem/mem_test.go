package mem_test

import (
	"context"
	"errors"
	"testing"

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
