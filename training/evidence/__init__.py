"""Is it true? Probes for shortcuts, and the judgement that a report is made of."""
