package replication

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/walferry/walferry/segment"
)

// Kind tells what a Message is.
type Kind uint8

const (
	// WALData carries WAL: Data is what stands at [Start, Start+len(Data)).
	WALData Kind = iota + 1
	// Keepalive says that the server lives and where its WAL ends.
	Keepalive
	// CopyDone ends the streamed timeline: nothing follows, and
	// FinishTimeline asks which timeline does.
	CopyDone
)

// Message is one message of a stream.
type Message struct {
	Kind           Kind
	ReplyRequested bool        // Keepalive: the server wants a status at once
	Start          segment.LSN // WALData: of the first byte of Data
	ServerEnd      segment.LSN // end of the server's WAL when it sent this
	Time           time.Time   // the server's clock when it sent this
	Data           []byte      // WALData: aliases the batch, valid until its Release
}

// epoch is midnight of 2000-01-01 UTC in microseconds of the Unix clock; the
// protocol counts microseconds from there.
const epoch = 946684800 * 1_000_000

// parseCopyData reads the body of a CopyData message of a physical stream
// (PostgreSQL documentation, XLogData and Primary keepalive message). The
// result's Data aliases body. A message of an unknown kind is ErrProtocol.
func parseCopyData(body []byte, m *Message) error {
	if len(body) == 0 {
		return fmt.Errorf("%w: empty CopyData", ErrProtocol)
	}
	switch body[0] {
	case pglogrepl.XLogDataByteID:
		x, err := pglogrepl.ParseXLogData(body[1:])
		if err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		start, data := segment.LSN(x.WALStart), x.WALData[:len(x.WALData):len(x.WALData)]
		if start+segment.LSN(len(data)) < start {
			return fmt.Errorf("%w: XLogData at %s with %d bytes", ErrProtocol, start, len(data))
		}
		*m = Message{Kind: WALData, Start: start, ServerEnd: segment.LSN(x.ServerWALEnd), Time: x.ServerTime, Data: data}
		return nil
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		k, err := pglogrepl.ParsePrimaryKeepaliveMessage(body[1:])
		if err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		*m = Message{Kind: Keepalive, ServerEnd: segment.LSN(k.ServerWALEnd), Time: k.ServerTime, ReplyRequested: k.ReplyRequested}
		return nil
	}
	return fmt.Errorf("%w: CopyData of unknown kind %q", ErrProtocol, body[0])
}

// Status is what we tell the server: how far we have written, flushed and
// applied (PostgreSQL documentation, Standby status update). A zero goes over
// the wire as zero: a flush LSN of zero moves no slot and releases no commit.
type Status struct {
	Write, Flush, Apply segment.LSN
	Time                time.Time // ours
	ReplyRequested      bool      // ask the server for a keepalive
}

// statusSize is a status in CopyData on the wire.
const statusSize = headerSize + 34

// appendStatus appends the status as a CopyData message.
func appendStatus(b []byte, s Status) []byte {
	b = append(b, 'd')
	b = binary.BigEndian.AppendUint32(b, statusSize-1)
	b = append(b, 'r')
	b = binary.BigEndian.AppendUint64(b, uint64(s.Write))
	b = binary.BigEndian.AppendUint64(b, uint64(s.Flush))
	b = binary.BigEndian.AppendUint64(b, uint64(s.Apply))
	b = binary.BigEndian.AppendUint64(b, uint64(s.Time.UnixMicro()-epoch))
	if s.ReplyRequested {
		return append(b, 1)
	}
	return append(b, 0)
}
