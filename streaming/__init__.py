"""Online: images from Kafka to predictions, feature vectors and dead letters, and from there to Delta tables."""
