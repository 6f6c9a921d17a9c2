"""A running stream: its start, what it serves, and what supervises its queries."""
