"""Where each query stands, what it lost, and whether every image has exactly one outcome."""
