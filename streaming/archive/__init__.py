"""ARCHIVE: outcomes into Delta tables, and the upkeep of these."""
