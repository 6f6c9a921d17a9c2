"""SCORE beside what else could do its work: the bare limit, two plain consumers, and the tutorial way, in one run."""
