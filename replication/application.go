package replication

// ApplicationName returns the application_name that our connections have: the
// name by which synchronous_standby_names would call us.
func (c *Config) ApplicationName() string {
	return c.hosts[0].RuntimeParams["application_name"]
}
