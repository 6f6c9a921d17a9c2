"""Topics, their identity, and reading and writing records: what talks to the broker outside Spark."""
