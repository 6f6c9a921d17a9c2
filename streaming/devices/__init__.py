"""What images come in by; no Spark."""
