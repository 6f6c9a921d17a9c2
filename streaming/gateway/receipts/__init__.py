"""What became of each image: read from the outcomes, kept, published, and given to whoever asks or waits."""
