// Package recovery decides how a cluster is restored, and tells the server so.
//
// MakePlan chooses the base backup and the timeline, and proves by the names of
// what the archive holds that the target can be reached, or says what can be
// reached instead. It changes nothing, and nothing was written when it refuses.
// Configure puts the plan into the settings of an unpacked data directory.
//
// What only the server finds out while it replays is not proved: whether a
// commit, a transaction or a named restore point is there at which it shall
// stop. When its WAL ends before that, the server says so and stops
// (PostgreSQL 13 and later: "recovery ended before configured recovery target
// was reached").
//
// Nothing here exits, prints or reads the environment.
package recovery
