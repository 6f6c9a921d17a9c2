"""What a model is worth: probes for shortcuts, and the judgement that a report is made of."""
