"""Faults on purpose, and the account afterwards: nothing lost, nothing twice in the tables, each record its outcome."""
