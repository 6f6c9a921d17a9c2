"""Commands: what they take and what they show. The work is done elsewhere."""
