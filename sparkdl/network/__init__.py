"""Networks as values: which there are, their weights, and their conversion to OpenVINO."""
