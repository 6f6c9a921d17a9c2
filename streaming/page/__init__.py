"""The page: the stream, its images and its models, for people who would rather look than read; no Spark."""
