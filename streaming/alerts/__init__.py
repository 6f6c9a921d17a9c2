"""Alarms on outcomes: rules over predictions, dead letters and receipts, each alarm delivered once; no Spark."""
