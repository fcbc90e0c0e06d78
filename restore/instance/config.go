package instance

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// baseSettings are what makes a server private. Those of Options come after
// them, so that a caller who knows better can change any.
func (s *Server) baseSettings() map[string]string {
	listen := ""
	if s.o.Listen {
		listen = "127.0.0.1"
	}
	return map[string]string{
		"listen_addresses":        listen,
		"port":                    fmt.Sprint(s.port),
		"unix_socket_directories": s.sock,
		// A server that was killed leaves what it had in /dev/shm behind;
		// files below the data directory go with it.
		"dynamic_shared_memory_type": "mmap",
		"archive_mode":               "off",
		"shared_buffers":             "32MB",
		"logging_collector":          "off",
		"log_destination":            "stderr",
	}
}

// writeConfig writes postgresql.conf and pg_hba.conf.
func (s *Server) writeConfig() error {
	all := s.baseSettings()
	maps.Copy(all, s.o.Settings)
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&b, "%s = %s\n", name, quote(all[name]))
	}
	if err := s.writeFile("postgresql.conf", b.String()); err != nil {
		return err
	}
	hba := append([]string{"local all all trust", "local replication all trust"}, s.o.HBA...)
	return s.writeFile("pg_hba.conf", strings.Join(hba, "\n")+"\n")
}

func (s *Server) writeFile(name, content string) error {
	path := s.path(name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		return err
	}
	return s.account.own(path)
}

// quote writes a value as postgresql.conf wants it (PostgreSQL: GUC_scanstr in
// src/backend/utils/misc/guc-file.l): backslashes are escapes there.
func quote(v string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `''`, "\n", `\n`).Replace(v) + "'"
}
