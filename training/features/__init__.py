"""Images to feature vectors, each computed once and kept, or read from the stream's tables."""
