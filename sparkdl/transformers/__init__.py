"""Spark ML transformers for image columns, and how a pipeline of them is saved."""
