"""Damaged files on purpose: mutated images through the decoders, in a child process with limits."""
