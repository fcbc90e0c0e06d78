// Package segment is the arithmetic of PostgreSQL's write-ahead log: LSNs,
// timelines, the WAL segment size, segment and history file names, timeline
// history, gaps, and the checks of WAL pages and records.
//
// It is pure: no I/O, no clock, no state. Everything that a name or a number
// means is decided here and nowhere else, strictly: a text that PostgreSQL
// would not have written is an error, never a guess.
//
// Ranges are half-open, [start, end). All values are safe for concurrent use.
package segment
