"""From a file's bytes to an image row: limits, formats, pixels; and ``imageIO`` as sparkdl 1.x had it."""
