"""The contracts of the stream: messages, dead letters, tables, errors and their reasons.

Everything else depends on this package; it depends on nothing but the standard library, except `deltatable`, which
writes the tables.
"""
