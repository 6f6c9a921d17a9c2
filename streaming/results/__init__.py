"""What reads outcomes and brings findings back; no Spark."""
