package basebackup

import (
	"context"
	"sync"
)

// crew are the goroutines of one backup. The first error of any ends them all:
// it is the cause of their context.
type crew struct {
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
}

func (c *crew) start(f func() error) {
	c.wg.Go(func() {
		if err := f(); err != nil {
			c.cancel(err)
		}
	})
}

// stop ends those that still run, and waits for them.
func (c *crew) stop(cause error) {
	c.cancel(cause)
	c.wg.Wait()
}
