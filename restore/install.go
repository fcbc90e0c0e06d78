package restore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// temporaryPrefix begins the names of unfinished files. In pg_wal the server
// and base backups pass by what is no WAL file, and pg_rewind what has
// /pgsql_tmp in its path (src/bin/pg_rewind/file_ops.c and filemap.c).
const temporaryPrefix = "pgsql_tmp_walferry."

// staleAfter is the age at which an unfinished file is taken for the leftover
// of a process that was killed. No fetch takes so long for one file.
const staleAfter = time.Hour

// files are the steps of an installation, in which tests make it fail.
type files interface {
	createTemp(dir, pattern string) (file, error)
	rename(from, to string) error
	remove(name string) error
	syncDir(dir string) error
}

type file interface {
	io.WriteCloser
	io.ReaderAt
	io.WriterAt
	Name() string
	Chmod(mode fs.FileMode) error
	Sync() error
}

type osFiles struct{}

func (osFiles) createTemp(dir, pattern string) (file, error) { return os.CreateTemp(dir, pattern) }
func (osFiles) rename(from, to string) error                 { return os.Rename(from, to) }
func (osFiles) remove(name string) error                     { return os.Remove(name) }

// syncDir makes the names in a directory durable. A file system that cannot
// do it and says so is taken at its word, as by PostgreSQL (fsync_fname in
// src/common/file_utils.c).
func (osFiles) syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EBADF) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// install makes target a file with what fill writes: under a temporary name
// in the same directory first, renamed when it is complete and durable. On
// nil the name is durable, too. When fill, or any step up to the rename,
// fails, target is as it was.
func (f *Fetcher) install(target string, fill func(io.Writer) error) (err error) {
	dir := filepath.Dir(target)
	t, err := f.files.createTemp(dir, temporaryPrefix+filepath.Base(target)+".*")
	if err != nil {
		return err
	}
	f.setTemporary(t.Name())
	defer f.setTemporary("")
	err = f.write(t, fill)
	if closeErr := t.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("closing %s: %w", t.Name(), closeErr)
	}
	if err == nil {
		err = f.files.rename(t.Name(), target)
	}
	if err != nil {
		if removeErr := f.files.remove(t.Name()); removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
			f.log.Debug(fmt.Sprintf("a temporary file is left over: %v", removeErr))
		}
		return err
	}
	if err := f.files.syncDir(dir); err != nil {
		return fmt.Errorf("making the name %s durable: %w", target, err)
	}
	return nil
}

func (f *Fetcher) write(t file, fill func(io.Writer) error) error {
	if err := t.Chmod(f.o.Place.filePerm()); err != nil {
		return err
	}
	if err := fill(t); err != nil {
		return err
	}
	if err := t.Sync(); err != nil {
		return fmt.Errorf("making %s durable: %w", t.Name(), err)
	}
	return nil
}

func (f *Fetcher) setTemporary(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.temporary = name
}

// Discard removes the unfinished file, if there is one, while Fetch is in the
// middle of it: for a process that is about to die by a signal. It may be
// called concurrently with Fetch, which then fails, if it goes on at all.
func (f *Fetcher) Discard() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.temporary == "" {
		return
	}
	if err := f.files.remove(f.temporary); err != nil {
		f.log.Debug(fmt.Sprintf("a temporary file is left over: %v", err))
	}
}

// sweep removes what killed processes left beside target. It is done when no
// file was delivered, so that it costs nothing while there is WAL to replay.
func (f *Fetcher) sweep(target string) {
	dir := filepath.Dir(target)
	entries, err := os.ReadDir(dir)
	if err != nil {
		f.log.Debug(fmt.Sprintf("looking for temporary files that were left over: %v", err))
		return
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), temporaryPrefix) || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if err == nil && time.Since(info.ModTime()) > staleAfter {
			err = f.files.remove(filepath.Join(dir, e.Name()))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.log.Debug(fmt.Sprintf("a temporary file is left over: %v", err))
		}
	}
}
