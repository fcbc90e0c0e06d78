package receiver

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/walferry/walferry/replication"
)

// watcher asks, on a second and short replication connection, whether commits
// wait for us: only then must a flush LSN go out at once, and only then does
// the hold not apply. It also notices a server that is shutting down.
type watcher struct {
	name    string // our application_name
	told    Synchronous
	changed chan struct{}

	mu        sync.Mutex
	config    *replication.Config // of the server that is streamed from; nil before the first
	standby   bool                // we are named in synchronous_standby_names
	goingDown bool
}

// startWatch starts the watch; the returned function ends it and waits.
func (r *Receiver) startWatch(ctx context.Context) (stop func()) {
	r.watch = &watcher{name: r.o.ApplicationName, told: r.o.Synchronous, changed: make(chan struct{}, 1)}
	if r.o.WatchInterval <= 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(r.o.WatchInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			r.watch.look(ctx, r.o.WatchInterval)
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// look asks once. A server that cannot be asked leaves what is known as it is.
func (w *watcher) look(ctx context.Context, patience time.Duration) {
	w.mu.Lock()
	config := w.config
	w.mu.Unlock()
	if config == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := replication.Connect(ctx, config)
	if err != nil {
		var se *replication.ServerError
		down := errors.As(err, &se) && se.SQLSTATE == "57P03" && strings.Contains(se.Message, "shutting down")
		w.set(func() { w.goingDown = down })
		return
	}
	defer func() {
		// Nothing depends on the good-bye of this connection.
		_ = conn.Close(ctx)
	}()
	if names, err := conn.Show(ctx, "synchronous_standby_names"); err == nil {
		w.saw(names)
	}
}

// follow names the server to be asked: the one that is streamed from, where
// several hosts are given.
func (w *watcher) follow(config *replication.Config) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.config = config
}

// saw takes the server's synchronous_standby_names.
func (w *watcher) saw(names string) {
	match := namesStandby(names, w.name)
	w.set(func() { w.standby, w.goingDown = match, false })
}

func (w *watcher) set(change func()) {
	w.mu.Lock()
	before := [2]bool{w.standby, w.goingDown}
	change()
	differs := before != [2]bool{w.standby, w.goingDown}
	w.mu.Unlock()
	if differs {
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

// waiting reports whether commits may wait for us.
func (w *watcher) waiting() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.told == SynchronousOn || w.told == SynchronousAuto && w.standby
}

func (w *watcher) shuttingDown() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.goingDown
}

// namesStandby reports whether the setting synchronous_standby_names names a
// standby called name: a list of names, or FIRST n (list), ANY n (list),
// n (list); a name may stand in double quotes, letter case does not count, and
// * is everybody (PostgreSQL: src/backend/replication/syncrep_gram.y,
// SyncRepGetStandbyPriority in syncrep.c).
func namesStandby(setting, name string) bool {
	list := setting
	if open := strings.IndexByte(unquoted(setting), '('); open >= 0 {
		list = setting[open+1:]
		if end := strings.LastIndexByte(list, ')'); end >= 0 {
			list = list[:end]
		}
	}
	for len(list) > 0 {
		var word string
		list = strings.TrimLeft(list, " \t\r\n,")
		if strings.HasPrefix(list, `"`) {
			word, list = quotedName(list[1:])
		} else {
			end := strings.IndexAny(list, " \t\r\n,")
			if end < 0 {
				end = len(list)
			}
			word, list = list[:end], list[end:]
			if word == "*" {
				return true
			}
		}
		if word != "" && strings.EqualFold(word, name) {
			return true
		}
	}
	return false
}

// unquoted returns s with every byte of a quoted name made a blank, so that
// what is searched in it is found at the same place in s.
func unquoted(s string) string {
	b := []byte(s)
	in := false
	for i, c := range b {
		if c == '"' {
			in = !in
		}
		if in {
			b[i] = ' '
		}
	}
	return string(b)
}

// quotedName reads a name up to its closing quote; a doubled quote stands for
// one.
func quotedName(s string) (name, rest string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '"' {
			if i+1 < len(s) && s[i+1] == '"' {
				i++
			} else {
				return b.String(), s[i+1:]
			}
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}
