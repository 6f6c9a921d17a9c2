"""Tests of who else reads the tables."""
