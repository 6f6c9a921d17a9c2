"""A bundle for a report of a fault, without patients' data and without secrets: for ``xray support``."""
