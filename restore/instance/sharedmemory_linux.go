package instance

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// remove removes the segment. It is left alone when it is not the one that the
// server named (the id was used again) or when somebody is attached to it.
func (m sharedMemory) remove() error {
	var d unix.SysvShmDesc
	if _, err := unix.SysvShmCtl(m.id, unix.IPC_STAT, &d); err != nil {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EIDRM) {
			return nil // gone
		}
		return fmt.Errorf("looking at shared memory segment %d: %w", m.id, err)
	}
	if int(d.Perm.Key) != m.key || d.Nattch != 0 {
		return nil
	}
	if _, err := unix.SysvShmCtl(m.id, unix.IPC_RMID, nil); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EIDRM) {
		return fmt.Errorf("removing shared memory segment %d: %w", m.id, err)
	}
	return nil
}
