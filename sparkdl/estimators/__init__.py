"""Spark ML estimators: Keras networks that are fitted on files."""
