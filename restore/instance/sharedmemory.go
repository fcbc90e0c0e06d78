package instance

import (
	"strconv"
	"strings"
)

// sharedMemory names the System V segment that a server keeps as its lock on
// the data directory. It outlives a server that was killed, until the next one
// in the same directory removes it (PostgreSQL: src/backend/port/sysv_shmem.c).
type sharedMemory struct{ key, id int }

// parseSharedMemory reads line 7 of postmaster.pid, "key id" (PostgreSQL:
// LOCK_FILE_LINE_SHMEM_KEY in src/include/utils/pidfile.h).
func parseSharedMemory(line string) (sharedMemory, bool) {
	f := strings.Fields(line)
	if len(f) != 2 {
		return sharedMemory{}, false
	}
	key, err1 := strconv.Atoi(f[0])
	id, err2 := strconv.Atoi(f[1])
	return sharedMemory{key, id}, err1 == nil && err2 == nil
}
