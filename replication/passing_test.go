package replication

import (
	"context"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
)

func TestPassing(t *testing.T) {
	server := func(code, routine string, copying bool) error {
		return fmt.Errorf("wrapped: %w", streamError(&ServerError{Severity: "ERROR", SQLSTATE: code, Routine: routine}, copying))
	}
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{context.Canceled, false},
		{ErrClosed, false},
		{fmt.Errorf("wrapped: %w", ErrProtocol), false},
		{fmt.Errorf("wrapped: %w", ErrNoCompression), false},
		{backupError(&ServerError{Severity: "ERROR", SQLSTATE: "42601"}, BackupOptions{Compression: "lz4"}), false},
		{backupError(&ServerError{Severity: "ERROR", SQLSTATE: "58P01"}, BackupOptions{Compression: "lz4"}), true},
		{ErrShutdown, true},
		{io.ErrUnexpectedEOF, true},
		{syscall.ECONNREFUSED, true},
		{&net.DNSError{}, true},
		{&EndOfTimeline{}, false},
		{server("57P03", "", false), true},
		{server("57P01", "", true), true},
		{server("28P01", "", false), true},
		{server("28000", "", false), true},
		{server("42501", "", false), true},
		{server("53300", "", false), true},
		{server("55006", "ReplicationSlotAcquire", false), true},
		{server("55000", "ReplicationSlotAcquire", false), false},
		{server("55000", "StartReplication", false), false},
		{server("58P01", "WalSndSegmentOpen", true), false},
		{server("XX000", "StartReplication", true), false},
		{server("XX000", "StartReplication", false), false},
		{server("XX000", "tliSwitchPoint", false), false},
		{server("XX000", "CheckXLogRemoved", true), false}, // a gap, whatever the SQLSTATE
		{server("XX000", "elsewhere", true), true},
		{server("42704", "ReplicationSlotAcquire", false), false},
		{server("42601", "", false), false},
		{server("0A000", "", false), false},
		{server("22023", "", false), false},
	} {
		if got := Passing(c.err); got != c.want {
			t.Errorf("Passing(%v) = %v", c.err, got)
		}
	}
}
