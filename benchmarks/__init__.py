"""What measures speed, each against a baseline in the same run."""
