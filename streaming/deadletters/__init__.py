"""Images without a prediction: reading them, and publishing them again."""
