package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/segment"
)

// slotList is the answer of "walferry slot list". Its JSON form is a
// contract: fields are added, never changed; null is "not known" or "none".
type slotList struct {
	Server string     `json:"server"`
	LSN    *string    `json:"lsn"` // where the server's WAL ends
	Slots  []slotInfo `json:"slots"`
	// NotAsked says what is missing when the ordinary connection was refused.
	NotAsked *notAsked `json:"not_asked"`
}

type notAsked struct {
	What   string `json:"what"`
	Reason string `json:"reason"`
}

// slotInfo is what is known of a slot; nil is what is not.
type slotInfo struct {
	Name               string  `json:"name"`
	Type               *string `json:"type"`
	Temporary          *bool   `json:"temporary"`
	Active             *bool   `json:"active"`
	ActivePID          *int64  `json:"active_pid"`
	ApplicationName    *string `json:"application_name"`
	RestartLSN         *string `json:"restart_lsn"`
	RetainedBytes      *int64  `json:"retained_bytes"`
	WALStatus          *string `json:"wal_status"`
	SafeWALSize        *int64  `json:"safe_wal_size"`
	InvalidationReason *string `json:"invalidation_reason"`
}

func (s slotInfo) lost() bool { return s.WALStatus != nil && *s.WALStatus == "lost" }

// state is the rest of a sentence about a slot that exists.
func (s slotInfo) state() string {
	var parts []string
	if s.RestartLSN != nil {
		parts = append(parts, "it holds WAL from "+*s.RestartLSN+" on")
	}
	if r := s.reader(); r != "" {
		parts = append(parts, "in use by "+r)
	}
	if len(parts) == 0 {
		return ""
	}
	return ": " + strings.Join(parts, ", ")
}

// reader is who reads from the slot; "" when nobody does or it is not known.
func (s slotInfo) reader() string {
	if s.ActivePID == nil {
		return ""
	}
	by := fmt.Sprintf("process %d of the server", *s.ActivePID)
	if s.ApplicationName != nil && *s.ApplicationName != "" {
		by += fmt.Sprintf(" (application %q)", *s.ApplicationName)
	}
	return by
}

// listSlots is "walferry slot list".
func listSlots(ctx context.Context, c *call) error {
	server, err := c.connection(defaultApplication)
	if err != nil {
		return err
	}
	list, err := c.askSlots(ctx, server)
	if err != nil {
		return withExit(exitFailed, err, "")
	}
	if c.flags.Bool("json") {
		enc := json.NewEncoder(c.stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(list); err != nil {
			return fmt.Errorf("printing the slots: %w", err)
		}
		return nil
	}
	return c.printSlots(list)
}

// askSlots asks the server by an ordinary connection for all slots, else by a
// replication connection for the one that the settings name.
func (c *call) askSlots(ctx context.Context, server *replication.Config) (slotList, error) {
	list, refused := c.querySlots(ctx, server)
	if refused == nil {
		return list, nil
	}
	conn, err := replication.Connect(ctx, server)
	if err != nil {
		// Neither way: the first one, which is asked for by name, says why.
		return slotList{}, refused
	}
	defer c.closing(ctx, conn)
	list = slotList{Server: server.String(), Slots: []slotInfo{}, NotAsked: &notAsked{
		What:   fmt.Sprintf("slots other than %q, active, wal_status and safe_wal_size", c.set.Text("slot")),
		Reason: oneLine(refused.Error()),
	}}
	system, err := conn.IdentifySystem(ctx)
	if err != nil {
		return slotList{}, err
	}
	list.LSN = new(system.Flush.String())
	s, err := conn.ReadSlot(ctx, c.set.Text("slot"))
	switch {
	case errors.Is(err, replication.ErrUnsupported):
		list.NotAsked.What = "any slot (PostgreSQL " + conn.Version().Text + " tells nothing about slots by the replication protocol)"
	case err != nil:
		return slotList{}, err
	case s.Exists:
		info := slotInfo{Name: c.set.Text("slot"), Type: &s.Type}
		if s.RestartLSN != 0 {
			info.RestartLSN = new(s.RestartLSN.String())
			info.RetainedBytes = new(retained(system.Flush, s.RestartLSN))
		}
		list.Slots = append(list.Slots, info)
	}
	return list, nil
}

// retained is the WAL that a slot holds back, in bytes.
func retained(end, restart segment.LSN) int64 {
	if restart > end {
		return 0
	}
	return int64(end - restart)
}

// slotQuery asks for everything at once, on PostgreSQL 14 to 18; in
// recovery the WAL ends where it was received. What the server's version does
// not have is null: to_jsonb takes rows of any shape.
const slotQuery = `
WITH here AS (SELECT CASE WHEN pg_is_in_recovery()
                          THEN coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                          ELSE pg_current_wal_lsn() END AS lsn)
SELECT here.lsn, s.slot_name, s.slot_type, s.temporary, s.active, s.active_pid, a.application_name,
       s.restart_lsn, CASE WHEN s.restart_lsn IS NOT NULL THEN greatest(pg_wal_lsn_diff(here.lsn, s.restart_lsn), 0) END, s.wal_status, s.safe_wal_size,
       to_jsonb(s) ->> 'invalidation_reason'
FROM here LEFT JOIN pg_replication_slots s ON true LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
ORDER BY s.slot_name`

// querySlots asks by an ordinary connection.
func (c *call) querySlots(ctx context.Context, server *replication.Config) (slotList, error) {
	db := c.set.Text("dbname")
	conn, err := replication.ConnectSQL(ctx, server, db)
	if err != nil {
		return slotList{}, fmt.Errorf("an ordinary connection to database %q: %w", db, err)
	}
	defer func() {
		if err := conn.Close(ctx); err != nil {
			c.log.Debug("the connection did not end well", slog.Any("error", err))
		}
	}()
	result := conn.ExecParams(ctx, slotQuery, nil, nil, nil, nil).Read()
	if result.Err != nil {
		return slotList{}, fmt.Errorf("asking for the slots: %w", result.Err)
	}
	list := slotList{Server: server.String(), Slots: []slotInfo{}}
	for _, r := range result.Rows {
		row := slotRow(r)
		list.LSN = row.text(0)
		if row[1] == nil {
			continue // no slot: the outer join's one row
		}
		list.Slots = append(list.Slots, slotInfo{
			Name: *row.text(1), Type: row.text(2), Temporary: row.bool(3), Active: row.bool(4),
			ActivePID: row.number(5), ApplicationName: row.text(6), RestartLSN: row.text(7),
			RetainedBytes: row.number(8), WALStatus: row.text(9), SafeWALSize: row.number(10), InvalidationReason: row.text(11),
		})
	}
	return list, nil
}

// slotRow is a row of slotQuery, in text form.
type slotRow [][]byte

func (r slotRow) text(i int) *string {
	if r[i] == nil {
		return nil
	}
	return new(string(r[i]))
}

func (r slotRow) bool(i int) *bool {
	if r[i] == nil {
		return nil
	}
	return new(string(r[i]) == "t")
}

func (r slotRow) number(i int) *int64 {
	n, err := strconv.ParseInt(string(r[i]), 10, 64)
	if err != nil {
		return nil
	}
	return &n
}

// describeSlot finds out what it can about one slot, for an answer that is
// given either way.
func (c *call) describeSlot(ctx context.Context, server *replication.Config, conn *replication.Conn, name string) slotInfo {
	list, err := c.querySlots(ctx, server)
	if err == nil {
		for _, s := range list.Slots {
			if s.Name == name {
				return s
			}
		}
	}
	info := slotInfo{Name: name}
	if s, err := conn.ReadSlot(ctx, name); err == nil && s.Exists {
		info.Type = &s.Type
		if s.RestartLSN != 0 {
			info.RestartLSN = new(s.RestartLSN.String())
		}
	}
	return info
}

// printSlots prints the slots for a person.
func (c *call) printSlots(list slotList) error {
	var b strings.Builder
	if len(list.Slots) == 0 {
		fmt.Fprintf(&b, "no slots on %s\n", list.Server)
		if list.NotAsked != nil {
			b.Reset()
			fmt.Fprintf(&b, "no slot %q on %s\n", c.set.Text("slot"), list.Server)
		}
	} else {
		unknown := "-"
		if list.NotAsked != nil {
			unknown = "not asked"
		}
		w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
		// Writing to memory cannot fail.
		_, _ = fmt.Fprintln(w, "NAME\tTYPE\tACTIVE\tRESTART_LSN\tRETAINED\tWAL_STATUS\tSAFE_WAL_SIZE\tREADER")
		for _, s := range list.Slots {
			active := unknown
			if s.Active != nil {
				active = map[bool]string{true: "yes", false: "no"}[*s.Active]
			}
			reader := unknown
			if s.ActivePID != nil {
				reader = strconv.FormatInt(*s.ActivePID, 10)
				if s.ApplicationName != nil && *s.ApplicationName != "" {
					reader = *s.ApplicationName + " (" + reader + ")"
				}
			}
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Name, orElse(s.Type, "-"), active, orElse(s.RestartLSN, "-"),
				orSize(s.RetainedBytes, "-"), orElse(s.WALStatus, unknown), orSize(s.SafeWALSize, unknown), reader)
		}
		if err := w.Flush(); err != nil {
			return fmt.Errorf("printing the slots: %w", err)
		}
	}
	for _, s := range list.Slots {
		if s.lost() {
			why := ""
			if s.InvalidationReason != nil {
				why = " (" + *s.InvalidationReason + ")"
			}
			fmt.Fprintf(&b, "slot %s is lost%s: WAL that it held was removed; drop it\n", s.Name, why)
		}
	}
	if n := list.NotAsked; n != nil {
		fmt.Fprintf(&b, "not asked: %s: %s\n", n.What, n.Reason)
	}
	return c.say("%s", b.String())
}

func orElse(s *string, otherwise string) string {
	if s == nil {
		return otherwise
	}
	return *s
}

func orSize(n *int64, otherwise string) string {
	if n == nil {
		return otherwise
	}
	return formatBytes(*n)
}

// formatBytes spells a number of bytes as pg_size_pretty does.
func formatBytes(n int64) string {
	unit := 0
	units := []string{"bytes", "kB", "MB", "GB", "TB"}
	for n >= 10*1024 && unit < len(units)-1 {
		n = (n + 512) / 1024
		unit++
	}
	return fmt.Sprintf("%d %s", n, units[unit])
}
