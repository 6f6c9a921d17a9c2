"""SCORE, one Spark query: images in, and for each a prediction with its feature vector, or a dead letter."""
