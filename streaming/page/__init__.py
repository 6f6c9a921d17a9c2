"""The page: images, scores, models and health for people who look, and what they say of an image; no Spark."""
