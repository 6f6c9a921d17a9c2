"""Numbers about predictions and their intervals; pure numpy, no file, no model."""
